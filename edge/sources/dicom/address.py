"""What `--source dicom://HOST:PORT?...` says."""

import dataclasses
import ipaddress
import os
import re
import socket
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from edge.errors import ConfigError
from edge.sources.dicom.spool import MIB, SpoolLimits

DEFAULT_AET = "EDGE"
EXAMPLE = "for example dicom://0.0.0.0:11112?aet=EDGE"
_NUMBERS = {"keep": 0, "max_associations": 1, "max_object_mib": 1, "max_waiting_mib": 1, "max_rate_mib": 1}
"""Numbers in the query, each with its least value."""
_KEYS = ("aet", "spool", *_NUMBERS)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ListenerAddress:
    """Where a DICOM listener listens, and what it bears."""

    host: str
    port: int
    aet: str
    spool: Path
    spool_limits: SpoolLimits
    max_associations: int = 16
    max_rate_bytes: int = 200 * MIB
    """A second, of each association; a sender that is faster is made to wait."""

    @property
    def is_loopback(self) -> bool:
        """Whether this host alone can reach it."""
        return self.host == "localhost" or ipaddress.ip_address(_resolved(self.host)).is_loopback


def parse_address(uri: str) -> ListenerAddress:
    """Read the URI.

    Raises:
        ConfigError: A part of it is not understood.
    """
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")  # as it is looked up
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as exc:
        raise ConfigError(f"the DICOM listener's address is not understood ({exc}); {EXAMPLE}") from exc
    if not host or port is None or parts.username is not None or parts.path not in ("", "/"):
        raise ConfigError(f"a DICOM listener needs dicom://HOST:PORT and nothing else before the '?'; {EXAMPLE}")
    for key in query:
        if key not in _KEYS:
            raise ConfigError(f"dicom://: unknown key {key!r} after the '?'; allowed are {', '.join(_KEYS)}")
    numbers = {key: _number(key, query[key]) for key in _NUMBERS if key in query}
    aet = query.get("aet", DEFAULT_AET)
    check_aet(aet, "aet")
    spool = Path(query["spool"]) if query.get("spool") else state_folder() / f"spool-{aet}-{port}"
    return ListenerAddress(
        host=host, port=port, aet=aet, spool=spool, spool_limits=_spool_limits(numbers), **_limits(numbers)
    )


def _spool_limits(numbers: dict[str, int]) -> SpoolLimits:
    limits = {"max_object_bytes": "max_object_mib", "max_waiting_bytes": "max_waiting_mib"}
    in_bytes = {name: numbers[key] * MIB for name, key in limits.items() if key in numbers}
    return SpoolLimits(**in_bytes, keep=numbers.get("keep", 0))


def _limits(numbers: dict[str, int]) -> dict[str, int]:
    limits = {key: numbers[key] for key in ("max_associations",) if key in numbers}
    if "max_rate_mib" in numbers:
        limits["max_rate_bytes"] = numbers["max_rate_mib"] * MIB
    return limits


def _number(key: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < _NUMBERS[key]:
        raise ConfigError(f"dicom://: {key} is {text!r}; it must be a whole number from {_NUMBERS[key]}")
    return int(text)


def check_aet(aet: str, name: str) -> None:
    """Check an application entity title (PS3.5, section 6.2, AE).

    Raises:
        ConfigError: It is none.
    """
    if not re.fullmatch(r"(?=.*[^ ])[ -\[\]-~]{1,16}", aet):
        raise ConfigError(f"{name} is {aet!r}; an AE title has 1 to 16 ASCII characters and no backslash")


def state_folder() -> Path:
    """Return where the daemon keeps what outlives it: systemd's StateDirectory, or the user's."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "edge-ultrasound"


def _resolved(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as exc:
        raise ConfigError(f"dicom://: the host {host!r} is not known ({exc.strerror}); give its address") from exc
