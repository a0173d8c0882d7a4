"""Network video by FFmpeg: RTSP, SRT and what else an address may name."""
