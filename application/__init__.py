"""Parts of the command line in cli.py: run folders, options, output streams and error messages."""
