"""The command `edge-watch`: the terminal view, JSON lines, and what draws a stream as a picture or a video."""
