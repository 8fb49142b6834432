"""Data sets of posed views of scenes."""
