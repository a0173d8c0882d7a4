"""Synthetic ultrasound: a sweep over a lymph node, by scatterers, a point spread function and scan conversion."""

from edge.phantom.sweep import DEFAULT_SIZE_WH, Phantom

__all__ = ["DEFAULT_SIZE_WH", "Phantom"]
