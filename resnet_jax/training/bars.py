"""tqdm's bars, as this package uses them: in a terminal, in a notebook, and beside what programs print."""

import functools
import sys
import warnings
from typing import Any

from tqdm import TqdmWarning

Bar = Any  # an instance of bar_class()


@functools.cache
def bar_class() -> Any:
    """tqdm's bar for this process: a widget in a notebook that has ipywidgets, else text on stderr.

    It has no monitor thread, which was once seen to keep a process from ending.
    """
    with warnings.catch_warnings():
        # tqdm.auto warns that it is new, and without ipywidgets that it falls back to text, which is what we want
        warnings.simplefilter("ignore", TqdmWarning)
        from tqdm.auto import tqdm
    return type("Bar", (tqdm,), {"monitor_interval": 0})


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook (Jupyter, Colab). Nothing is imported for the answer."""
    zmqshell, ipython = sys.modules.get("ipykernel.zmqshell"), sys.modules.get("IPython")
    return (
        zmqshell is not None and ipython is not None and isinstance(ipython.get_ipython(), zmqshell.ZMQInteractiveShell)
    )


class PrintsAbove:
    """While a text bar is shown: what is printed to the same terminal appears above it, in whole lines.

    It stands in for sys.stdout, if that is a terminal, until `stop`.
    """

    def __init__(self, bar: Bar) -> None:
        self._bar, self._stream, self._line = bar, sys.stdout, ""
        if self._stream is not None and self._stream.isatty():
            sys.stdout = self

    def write(self, text: str) -> int:
        """Hold the text until its line is complete. After `stop`, write it at once."""
        if self._bar is None:
            return self._stream.write(text)
        lines, newline, self._line = (self._line + text).rpartition("\n")
        if newline:
            with self._bar.get_lock():
                self._bar.clear(nolock=True)
                self._stream.write(lines + newline)
                self._stream.flush()
                self._bar.refresh(nolock=True)
        return len(text)

    def stop(self) -> None:
        """Put sys.stdout back, unless someone else has replaced it meanwhile, and write an incomplete line."""
        self._bar = None
        if sys.stdout is self:
            sys.stdout = self._stream
        if self._line:
            self._stream.write(self._line)
            self._line = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
