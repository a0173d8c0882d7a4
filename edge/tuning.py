"""How an engine uses the machine: `threads=2,pinning=off,cache=DIR`."""

from pathlib import Path
from typing import TypedDict

from edge.errors import ConfigError

_SWITCH = {"on": True, "off": False}


class Tuning(TypedDict, total=False):
    """What `engines.load_engine` is told; what is not given is the backend's own choice."""

    num_threads: int
    is_pinned: bool
    cache_dir: Path


def parse_tuning(text: str) -> Tuning:
    """Return the settings of a comma-separated list.

    Args:
        text: `threads=N` (1 or more), `pinning=on|off`, `cache=DIR` (a folder, made where it is missing); or empty.

    Raises:
        ConfigError: Another key, or a value that is none of its kind.
    """
    tuning = Tuning()
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key == "threads" and value.isdecimal() and int(value) >= 1:
            tuning["num_threads"] = int(value)
        elif key == "pinning" and value in _SWITCH:
            tuning["is_pinned"] = _SWITCH[value]
        elif key == "cache" and value:
            tuning["cache_dir"] = Path(value)
        else:
            raise ConfigError(f"--tune has {part!r}; allowed are threads=N with N >= 1, pinning=on|off, cache=DIR")
    return tuning
