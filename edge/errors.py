"""The error tree.

    EdgeError                   exit code 1; the root, one line for people
    ├── ConfigError             2  wrong usage or configuration          (also ValueError)
    ├── SourceError             3  the source could not be opened, or was lost for good (also OSError)
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
    "WireError",
]


class ConfigError(EdgeError, ValueError):
    """A command line, configuration file or ROI that cannot be used."""

    exit_code = 2


class SourceError(EdgeError, OSError):
    """The source could not be opened, gave no frame, or was lost for good."""

    exit_code = 3


class BindError(EdgeError, OSError):
    """The address to publish on could not be bound."""

    exit_code = 5


class WireError(EdgeError, ValueError):
    """A received message is not of a version or form that this reader understands."""
