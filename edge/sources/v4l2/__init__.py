"""A frame grabber by Video4Linux: the device, its modes, and frames from it through losses of signal."""
