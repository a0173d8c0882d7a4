"""Recordings: the ROI's video and every published message of a stream, in segments that outlive a kill."""
