"""The error tree.

    EdgeError                   exit code 1; the root, one line for people
    ├── ConfigError             2  wrong usage or configuration          (also ValueError)
    ├── SourceError             3  the source could not be opened, or was lost for good (also OSError)
    │   └── SourceLost             a live source is gone for now; it is opened again
    ├── EngineError             4  the engine was refused or failed      (also RuntimeError)
    │   ├── BundleError            the bundle on disk is damaged         (also ValueError)
    │   ├── ParityError            outputs differ from the reference
    │   └── BackendError           backend unknown or not installed      (also ImportError)
    ├── BindError               5  the address could not be bound        (also OSError)
    └── WireError               1  a message on the wire is not readable (also ValueError)

A library's own exception is turned into one of these where the library is called, with `from`.
"""

from engines.errors import BackendError, BundleError, EdgeError, EngineError, ParityError

__all__ = [
    "BackendError",
    "BindError",
    "BundleError",
    "ConfigError",
    "EdgeError",
    "EngineError",
    "ParityError",
    "SourceError",
    "SourceLost",
    "WireError",
]


class ConfigError(EdgeError, ValueError):
    """A command line, configuration file or ROI that cannot be used."""

    exit_code = 2


class SourceError(EdgeError, OSError):
    """The source could not be opened, gave no frame, or was lost for good."""

    exit_code = 3


class SourceLost(SourceError):  # noqa: N818 - an event that is got over
    """A live source that had been opened is gone for now; the supervisor opens it again until it is back.

    The reason is published: it holds no credentials and no patient data.
    """

    def __init__(self, reason: str, *, is_fault: bool = False) -> None:
        """Say why.

        Args:
            reason: One line: what happened, what to do.
            is_fault: The device or peer is broken (FAULT), not only silent or unplugged (NO_SIGNAL).
        """
        super().__init__(reason)
        self.is_fault = is_fault


class BindError(EdgeError, OSError):
    """The address to publish on could not be bound."""

    exit_code = 5


class WireError(EdgeError, ValueError):
    """A received message is not of a version or form that this reader understands."""
