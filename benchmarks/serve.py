"""What a peer's process does: reads the name of a mode a line, makes a step, prints its seconds. Needs Python alone."""

import sys
import time
from collections.abc import Callable, Mapping


def serve(hello: str, steps: Mapping[str, Callable[[], object]]) -> None:
    """Print hello, then answer lines of standard input until it ends. steps: mode -> a call that makes one."""
    print(hello, flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        steps[line.rstrip("\n")]()
        print(time.perf_counter() - began, flush=True)
