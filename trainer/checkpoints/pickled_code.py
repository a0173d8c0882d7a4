"""What a pickle would import when it is read, found without reading it as one: nothing in the file is run."""

import pickletools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

ALLOWED = "allowed are .safetensors, and .pt, .pth or .ckpt files that hold tensors alone"
"""What to give in place of a file that holds code."""

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_ZIP_MAGIC = b"PK"
"""What torch.save writes today; torch itself names what such a file would import."""


def named_by_torch(message: str) -> str | None:
    """Return the first function or class that torch's refusal of a file names, such as "posix.system"."""
    found = re.search(r"(?:GLOBAL|class|function|type) ['\"]?([A-Za-z_][\w.]*\.\w+)", message)
    return found[1] if found else None


def first_import(path: Path) -> str | None:
    """Return the first function or class that a plain pickle would import; None where it is none or imports nothing.

    torch reads the pickles that torch.save writes; of newer protocols it says no more than that it does not know them.
    """
    with path.open("rb") as stream:
        if stream.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC:
            return None
        stream.seek(0)
        return next((name for name in _imports(stream) if _NAME.fullmatch(name)), None)


def _imports(stream: BinaryIO) -> Iterator[str]:
    """Yield the dotted names up to where the pickle ends or makes no sense."""
    texts: list[str] = []
    memo: dict[int, str] = {}
    last = ""
    try:
        for operation, value, _ in pickletools.genops(stream):
            name = operation.name
            if name in ("GLOBAL", "INST"):
                yield str(value).replace(" ", ".")
            elif name == "STACK_GLOBAL":
                yield ".".join(texts[-2:])
            elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
                memo[len(memo) if name == "MEMOIZE" else int(value)] = last
                continue
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                value = memo.get(int(value), "")
            last = value if isinstance(value, str) else ""
            if last:
                texts.append(last)
    except (ValueError, IndexError, OverflowError, MemoryError):  # cut short, or no pickle at all
        return
