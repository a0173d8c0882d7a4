"""How the daemon is, and how it says so: heartbeats, counts and times, states, the status message, systemd, the log."""
