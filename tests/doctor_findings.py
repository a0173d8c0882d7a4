"""What the tests of edge-doctor's checks share."""

import contextlib
import os
from collections.abc import Iterator

from tools.doctor.finding import Finding

NOBODY = 65534


def one_finding(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Be nobody for a while, where we are root: root may open everything."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
