"""Labelled videos: the manifest, who trains and who tests, and each video's frames as the daemon would see them."""
