"""Messages of Orbax and its libraries that say nothing new, left out while checkpoints are open."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

# Orbax warns of these, but they are intended: a checkpoint inside an epoch has no metrics, load() opens a folder to
# read, and Orbax removes what a killed run had half written
INTENDED = ("did not provide metrics", "read_only=True", "directory is read only", "since it is not finalized")


def _worth_logging(record: logging.LogRecord) -> bool:
    """False for intended warnings, and for the traceback of an error that Orbax also raises."""
    raised = record.exc_info is not None and "orbax" in record.pathname
    return not raised and not any(text in record.getMessage() for text in INTENDED)


def _retrieved(record: logging.LogRecord) -> bool:
    """False for the errors of further arrays, after the error of the first one has been raised."""
    message = record.getMessage()
    return "exception was never retrieved" not in message or "tensorstore" not in message


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Filter these messages inside the with block; loggers and hooks are then as they were before."""
    before, loggers = sys.unraisablehook, {"absl": _worth_logging, "asyncio": _retrieved}

    def unraisable(unraisable: Any) -> None:
        """After the error of one array, TensorStore calls back for the others in an event loop that is closed."""
        if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    for name, keep in loggers.items():
        logging.getLogger(name).addFilter(keep)
    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = before
        for name, keep in loggers.items():
            logging.getLogger(name).removeFilter(keep)
