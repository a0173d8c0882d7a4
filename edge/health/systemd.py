"""Tells systemd how the daemon is: ready, alive, stopping. Without systemd it does nothing.

Source: the manual page sd_notify(3).
"""

import contextlib
import os
import socket

_TIMEOUT_S = 0.5


class Notifier:
    """Sends the messages of `sd_notify` to the socket that systemd names."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        watchdog_us = os.environ.get("WATCHDOG_USEC", "")
        is_ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.interval_s = int(watchdog_us) / 3e6 if watchdog_us.isdecimal() and is_ours else None
        """How often systemd is to be told that the daemon lives; None: never."""
        self._told: str | None = None

    def ready(self) -> None:
        """Say that the daemon has started."""
        self._send("READY=1")

    def alive(self, status: str) -> None:
        """Say that all stages live, and what `systemctl status` is to show."""
        lines = ["WATCHDOG=1"] if self.interval_s is not None else []
        if status != self._told:
            self._told = status
            lines.append(f"STATUS={' '.join(status.split())}")
        if lines:
            self._send("\n".join(lines))

    def stopping(self) -> None:
        """Say that the daemon ends."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # a systemd that is not there any more is no reason to stop
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
            unix.settimeout(_TIMEOUT_S)  # its queue may be full; the supervisor must not hang on that
            unix.sendto(message.encode(), self._address)
