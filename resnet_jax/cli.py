"""The command."""

import io
import sys
from collections.abc import Sequence

from resnet_jax.errors import UserError
from resnet_jax.training import Config, Stopped, fit
from resnet_jax.training.config import check, parse, read
from resnet_jax.training.rundir import old_run_dir, read_config


def command() -> int:
    """The installed command resnet-jax."""
    return main(prog="resnet-jax")


def main(argv: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """Train as the flags say; the exit code. 2: the flags, a file or a folder cannot be, in one line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a log file is read while the run goes on
    try:
        result = fit(read_flags(sys.argv[1:] if argv is None else argv, prog))
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:  # before the first step, or for the second time
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    print(f"test accuracy {result.test_accuracy:.4f}; the run is in {result.run_dir}")
    return 0


def read_flags(argv: Sequence[str], prog: str) -> Config:
    """The config that flags ask for; on --resume, over that of the run."""
    config = read(argv, prog)
    if not config.run.resume:
        return check(config)
    run_dir = old_run_dir(config)
    return parse([*argv, "--run-dir", str(run_dir)], prog, default=read_config(run_dir))
