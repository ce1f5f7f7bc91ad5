"""Messages of Orbax and its libraries that say nothing new, left out while checkpoints are open."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

# Orbax warns of these, but they are intended: a checkpoint inside an epoch has no metrics, load() opens a folder to
# read, and Orbax removes what a killed run had half written
INTENDED = ("did not provide metrics", "read_only=True", "directory is read only", "since it is not finalized")
# _CHECKPOINT_METADATA holds nothing that a run needs. Orbax logs an error if it is damaged, and continues
UNUSED = ("Failed to read Metadata file", "Failed to json parse Metadata file")


def _worth_logging(record: logging.LogRecord) -> bool:
    """False for intended warnings, and for the traceback of an error that Orbax also raises."""
    raised = record.exc_info is not None and "orbax" in record.pathname
    return not raised and not any(text in record.getMessage() for text in INTENDED + UNUSED)


def _retrieved(record: logging.LogRecord) -> bool:
    """False for the errors of further arrays, after the error of the first one has been raised."""
    message = record.getMessage()
    return "exception was never retrieved" not in message or "tensorstore" not in message


class LateCalls:
    """A sys.unraisablehook that ignores calls in an event loop that is closed.

    before: the hook for everything else. stays: it is kept until the process ends.
    """

    def __init__(self, before: Callable[[Any], object]):
        self.before, self.stays = before, False

    def __call__(self, unraisable: Any) -> None:
        if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
            self.before(unraisable)


@contextlib.contextmanager
def late_errors() -> Iterator[None]:
    """Around one call of Orbax: ignore the errors of other arrays that arrive after the call has raised.

    Orbax closes its event loop after the first error and after Ctrl-C. TensorStore calls back in that loop for the
    other arrays, at any time until the process ends. So the filters stay after an exception of any kind; otherwise hook
    and logger are as they were before.
    """
    with _filtered() as late:
        try:
            yield
        except BaseException:
            late.stays = True
            raise


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Filter Orbax's messages and late errors inside the with block; then hook and loggers are as they were before.

    After an exception too, unless a call of Orbax raised it (see late_errors): other code leaves no late errors.
    """
    logger = logging.getLogger("absl")
    logger.addFilter(_worth_logging)
    try:
        with _filtered():
            yield
    finally:
        logger.removeFilter(_worth_logging)


@contextlib.contextmanager
def _filtered() -> Iterator[LateCalls]:
    """Filter late errors inside the with block, and afterwards if `stays` of the hook is set."""
    hook, logger = sys.unraisablehook, logging.getLogger("asyncio")
    outer = isinstance(hook, LateCalls)  # of a with block around this one, or of an earlier error
    late = hook if outer else LateCalls(hook)
    sys.unraisablehook = late
    logger.addFilter(_retrieved)
    try:
        yield late
    finally:
        if not outer and not late.stays:
            sys.unraisablehook = hook
            logger.removeFilter(_retrieved)
