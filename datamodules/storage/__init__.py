"""Files, archives and downloads, which know nothing of signals."""
