"""The commands: which one runs, and what its errors and signals become."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from resnet_jax import cores
from resnet_jax.cli import convert, evaluate, export, grow, report, summary, train
from resnet_jax.errors import ConfigError, UserError, unknown
from resnet_jax.runs import Stopped
from resnet_jax.training.memory import enough_memory
from resnet_jax.training.signals import handled

Run = Callable[[Sequence[str], str], None]  # its flags, and the name of the command for messages


def main(argv: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """Train as the flags say; returns the exit code."""
    return guarded(train.train, sys.argv[1:] if argv is None else argv, prog)


def command(argv: Sequence[str] | None = None, prog: str = "resnet-jax") -> int:
    """Run the command that the first word names, or train if the first word is a flag; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"]):
        print(f"{prog} COMMAND --help describes a command: {', '.join(COMMANDS)}. The default is train:\n")
    if not words or words[0].startswith("-"):
        return main(words, prog)
    return guarded(run_command, words, prog)


def run_command(words: Sequence[str], prog: str) -> None:
    """Run the command of the first word with the other words as its flags."""
    name, *flags = words
    if name not in COMMANDS:
        raise ConfigError(unknown("command", name, COMMANDS))
    COMMANDS[name](flags, f"{prog} {name}")


def guarded(run: Run, argv: Sequence[str], prog: str) -> int:
    """Run a command; returns the exit code. Errors of the user are one line on stderr, with exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # people read log files during a run
    try:
        cores.limit_xla()
        with terminable(), enough_memory():
            run(argv, prog)
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    except BrokenPipeError:  # the reader of the output has gone: discard the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:  # before the first step, or for the second time
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    return 0


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that half-written files are removed."""

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)  # the second one ends it at once
        sys.exit(128 + signum)

    with handled(stop, signal.SIGTERM):
        yield


COMMANDS: dict[str, Run] = {
    "convert": convert.convert,
    "evaluate": evaluate.evaluate,
    "export": export.export,
    "grow": grow.grow,
    "report": report.report,
    "summary": summary.summary,
    "train": train.train,
}
