"""Ctrl-C in the seconds in which a command imports its libraries."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

SCRIPTS = ("train.py", "resnet-jax")


@contextlib.contextmanager
def interruptible_import() -> Iterator[None]:
    """At a Ctrl-C inside the with block, end the process with one line and exit code 130.

    While an extension module is imported, KeyboardInterrupt becomes an ImportError, is lost, or ends the process with a
    segmentation fault. An import writes no files, so the process may end at once. Where a command is not the whole
    process, as in a notebook or a test, nothing changes.
    """
    main = threading.current_thread() is threading.main_thread()
    name = command_name()
    if not (main and name) or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def end(signum: int, frame: object) -> None:
        os.write(2, f"{name}: interrupted\n".encode())
        os._exit(128 + signum)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def command_name() -> str:
    """The name of the command that this process was started as; "" if it is another program."""
    script = os.path.realpath(sys.argv[0])
    folder, name = os.path.split(script)
    if name == "__main__.py" and folder == os.path.dirname(os.path.realpath(__file__)):
        return "python -m resnet_jax"
    started = any(os.path.realpath(word) == script for word in sys.orig_argv[1:])  # not so with %run of a notebook
    return name if started and name in SCRIPTS else ""
