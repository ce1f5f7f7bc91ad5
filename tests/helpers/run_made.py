"""The command on the made data set, in a process of its own: python run_made.py STEP FLAGS... or STEP sweep WORDS...

At that step, inside an epoch, it prints a line and waits for a signal: SIGTERM lets it go on, SIGKILL ends it.
"""

import sys
import time

import made

from resnet_jax.cli import command, main
from resnet_jax.training.callbacks import StopSignals

STEP = int(sys.argv[1])


def wait_inside_epoch(self, loop, on_step_end=StopSignals.on_step_end):
    if loop.step == STEP:
        print("waiting", flush=True)
        while self.received is None:
            time.sleep(0.01)
    on_step_end(self, loop)


if __name__ == "__main__":
    made.install()
    setattr(StopSignals, "on_step_end", wait_inside_epoch)  # noqa: B010  (pyright: a method is no variable)
    sys.exit(command(sys.argv[2:]) if sys.argv[2] == "sweep" else main(sys.argv[2:]))
