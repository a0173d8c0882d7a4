"""Collects what the project's own code warns of, to tell it later and elsewhere."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect warnings of the daemon's and the engines' code, in place of printing them."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("edge")
    were, was_propagating = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield messages
    finally:
        logger.handlers, logger.propagate = were, was_propagating
