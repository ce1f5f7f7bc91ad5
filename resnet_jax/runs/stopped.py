"""The exception of a run that a signal stopped. The command imports it, so this file imports nothing large."""

from pathlib import Path


class Stopped(Exception):
    """A signal stopped the run after its checkpoint was written. signum: the number of the signal."""

    def __init__(self, signum: int, run_dir: Path, step: int):
        super().__init__(f"stopped at step {step}; continue with --resume --run-dir {run_dir}")
        self.signum = signum
