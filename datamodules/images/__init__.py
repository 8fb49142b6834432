"""Image data modules."""
