"""Read files of all kinds; download, unpack and cache them."""
