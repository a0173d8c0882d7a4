"""The command `edge-keygen`: key pairs for ZeroMQ CURVE."""

import os
from pathlib import Path

import zmq.auth

from edge.commandline import Parser, run_command
from edge.errors import ConfigError

_NAMES = ("server", "client")


def main() -> int:
    """Run the command."""
    return run_command(_run)


def write_keys(folder: Path) -> None:
    """Write a server's and a client's key pair; the secret files are for their owner's eyes alone.

    Raises:
        ConfigError: The folder holds keys already, or cannot be written to.
    """
    existing = [path for name in _NAMES for path in _paths(folder, name) if path.exists()]
    if existing:
        raise ConfigError(f"{existing[0]} exists; keys are not overwritten: choose another folder")
    before = os.umask(0o077)  # so that a secret is never readable by others, not for a moment
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in _NAMES:
            zmq.auth.create_certificates(folder, name)
            _paths(folder, name)[0].chmod(0o644)
    except OSError as exc:
        raise ConfigError(
            f"cannot write keys to {folder} ({exc.strerror}); choose a folder that you may write"
        ) from exc
    finally:
        os.umask(before)


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.key", folder / f"{name}.key_secret"


def _run() -> int:
    parser = Parser(
        "edge-keygen",
        "Write the key pairs that edge-infer and edge-watch take with --curve DIR.",
        "edge-keygen keys && edge-infer --source demo --publish tcp://*:5555 --curve keys",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="where the four key files go")
    folder = parser.parse_args().folder
    write_keys(folder)
    print(f"wrote server.key, server.key_secret, client.key and client.key_secret to {folder}")
    print("a machine that only reads needs server.key and client.key_secret; keep *.key_secret to yourself")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
