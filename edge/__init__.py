"""The daemon and its subscribers, in the order in which a frame meets them.

Research software; not a medical device.
"""

__version__ = "0.1.0"
