"""The `openvino` backend: its engine, what it builds into a bundle, INT8, and the cut after each frame's own part.

`import openvino` is the library wherever it stands: imports are absolute.
"""
