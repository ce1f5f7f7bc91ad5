"""The loop of a peer's process: read the name of a mode per line, run one step, print its seconds.

It needs only Python's standard library.
"""

import sys
import time
from collections.abc import Callable, Mapping


def serve(hello: str, steps: Mapping[str, Callable[[], object]]) -> None:
    """Print hello, then answer each line of standard input. steps: maps a mode to a function that runs one step."""
    print(hello, flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        steps[line.rstrip("\n")]()
        print(time.perf_counter() - began, flush=True)
