"""The command."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from resnet_jax import commands
from resnet_jax.errors import ConfigError, UserError, unknown
from resnet_jax.training import Config, Stopped, fit
from resnet_jax.training.config import check, parse, read
from resnet_jax.training.loop import handled
from resnet_jax.training.rundir import old_run_dir, read_config

Run = Callable[[Sequence[str], str], None]  # of flags and the command's name, for messages


def main(argv: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """Train as the flags say; the exit code."""
    return guarded(train, sys.argv[1:] if argv is None else argv, prog)


def command(argv: Sequence[str] | None = None, prog: str = "resnet-jax") -> int:
    """What the first word of COMMANDS says, or train where flags alone are given; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        print(f"{prog} COMMAND --help tells of each of {', '.join(COMMANDS)}. Without a command it is train:\n")
    if not words or words[0].startswith("-"):
        return main(words, prog)
    return guarded(run_command, words, prog)


def run_command(words: Sequence[str], prog: str) -> None:
    """The first word's command, with the rest for flags."""
    name, *flags = words
    if name not in COMMANDS:
        raise ConfigError(unknown("command", name, COMMANDS))
    COMMANDS[name](flags, f"{prog} {name}")


def guarded(run: Run, argv: Sequence[str], prog: str) -> int:
    """Run; the exit code. 2: the flags, a file or a folder cannot be, in one line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a log file is read while the run goes on
    try:
        with terminable():
            run(argv, prog)
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    except BrokenPipeError:  # what reads the output has gone, and what is left of it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:  # before the first step, or for the second time
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the program as an exception does, so that what is half-written is removed."""

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)  # the second one ends it at once
        sys.exit(128 + signum)

    with handled(stop, signal.SIGTERM):
        yield


def train(argv: Sequence[str], prog: str) -> None:
    """A run, and its accuracy."""
    result = fit(read_flags(argv, prog))
    print(f"test accuracy {result.test_accuracy:.4f}; the run is in {result.run_dir}")


def read_flags(argv: Sequence[str], prog: str) -> Config:
    """The config that flags ask for; on --resume, over that of the run."""
    config = read(argv, prog)
    if not config.run.resume:
        return check(config)
    run_dir = old_run_dir(config)
    return parse([*argv, "--run-dir", str(run_dir)], prog, default=read_config(run_dir))


COMMANDS: dict[str, Run] = {
    "convert": commands.convert,
    "export": commands.export,
    "grow": commands.grow,
    "summary": commands.summary,
    "train": train,
}
