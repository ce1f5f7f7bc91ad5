"""Handlers of signals, set for a while."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


def can_handle(signum: int) -> bool:
    """Whether a handler can be set: in the main thread, for a signal that is not ignored (nohup) or handled in C."""
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(signum) not in (signal.SIG_IGN, None)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], None], *signums: int) -> Iterator[None]:
    """Handle the signals by `handler` inside the with block, where that is possible."""
    before = {signum: signal.signal(signum, handler) for signum in signums if can_handle(signum)}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)
