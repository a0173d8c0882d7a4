"""What a run or a bundle says of videos: every window, one answer a video, and where the evidence lies."""
