"""Where a report's objects are sent."""

import dataclasses
import re

from edge.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True)
class Pacs:
    """Where objects go: `AET@HOST:PORT`."""

    aet: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.aet}@{host}:{self.port}"


def parse_pacs(text: str) -> Pacs:
    """Read `AET@HOST:PORT`.

    Raises:
        ConfigError: It is of another form.
    """
    match = re.fullmatch(r"([^@\s\\]{1,16})@(.+):(\d{1,5})", text)
    if match is None or not 0 < int(match[3]) < 65536:
        raise ConfigError(f"--pacs is {text!r}; it must be AET@HOST:PORT, for example ORTHANC@10.0.0.5:4242")
    return Pacs(match[1], match[2].strip("[]"), int(match[3]))
