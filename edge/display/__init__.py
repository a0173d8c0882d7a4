"""The bedside display: a small server that subscribes to daemons and serves a page for a browser."""
