"""Root of the error tree, and the engines' branch of it (the whole tree is drawn in `edge/errors.py`)."""


class EdgeError(Exception):
    """Something that the user can mend; its text is one line: what was got, what is allowed, what to do.

    Attributes:
        exit_code: Exit code of a command that ends with this error.
    """

    exit_code = 1


class EngineError(EdgeError, RuntimeError):
    """The engine was refused or failed."""

    exit_code = 4


class BundleError(EngineError, ValueError):
    """The bundle on disk is damaged, incomplete or of an unknown schema version."""


class ParityError(EngineError):
    """The engine's outputs differ from the bundle's reference by more than the tolerance."""


class BackendError(EngineError, ImportError):
    """The backend is unknown, or its library is not installed on this machine."""


def first_line(exc: Exception) -> str:
    """Return what a library's error says in its first line, or its name: torch adds pages of its own insides."""
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__


def last_line(exc: Exception) -> str:
    """Return what a library's error says in its last line, or its name: OpenVINO and ONNX Runtime begin with where."""
    lines = str(exc).strip().splitlines()
    return lines[-1].strip() if lines else type(exc).__name__
