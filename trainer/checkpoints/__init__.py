"""A public checkpoint becomes one of our networks; nothing in the file is ever run."""
