"""Kinds of signals as people touch them: read, written, drawn, measured."""
