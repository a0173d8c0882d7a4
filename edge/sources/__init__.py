"""Where frames come from: one file a kind, chosen from the `--source` URI by `open_source`."""

from edge.sources.base import Rect, Source, SourceInfo
from edge.sources.table import open_source

__all__ = ["Rect", "Source", "SourceInfo", "open_source"]
