"""What cli.py is made of: run folders, options, streams, messages."""
