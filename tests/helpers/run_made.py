"""The command on the made data set, in a process of its own: python run_made.py STEP FLAGS...

At that step, inside an epoch, it prints a line and waits for a signal: SIGTERM lets it go on, SIGKILL ends it.
"""

import sys
import time

import made

from resnet_jax.cli import main
from resnet_jax.training.loop import Saver

STEP = int(sys.argv[1])


def wait_inside_epoch(self, state, progress, inside_epoch=Saver.inside_epoch):
    if int(state.step) == STEP:
        print("waiting", flush=True)
        while self.signals.received is None:
            time.sleep(0.01)
    inside_epoch(self, state, progress)


if __name__ == "__main__":
    made.install()
    setattr(Saver, "inside_epoch", wait_inside_epoch)  # noqa: B010  (pyright: a method is no variable)
    sys.exit(main(sys.argv[2:]))
