"""The name under which a stored object's results are published."""

import hashlib
import secrets

_SALT = secrets.token_bytes(32)
"""Of this process alone, and never published: whoever knows an object's UID cannot tell its hash."""


def salted_hash(name: str) -> str:
    """Return 32 hexadecimal digits, the same for the same name as long as the process runs."""
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), key=_SALT, digest_size=16).hexdigest()
