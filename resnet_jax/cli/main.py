"""The commands: which one runs, and what its errors and signals become."""

import contextlib
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from resnet_jax import cores
from resnet_jax.errors import ConfigError, UserError, unknown
from resnet_jax.runs.stopped import Stopped
from resnet_jax.training.memory import enough_memory
from resnet_jax.training.signals import handled
from resnet_jax.versions import versions

Run = Callable[[Sequence[str], str], int | None]  # flags and name of the command -> exit code; None is 0

# command -> what it does. resnet_jax.cli.NAME has the function NAME. It is imported when the command runs, and imports
# jax after it has read its flags, so that --help answers at once.
COMMANDS = {
    "convert": "convert PyTorch weights, or a run, to a folder for --pretrained, and back",
    "demo": "open a page that shows the class of a picture, and where the network finds it",
    "doctor": "check this machine: devices, versions, kernels, data, disk, and what to do",
    "evaluate": "measure a run on its data, or on another data set",
    "export": "write the network of a run as a StableHLO program",
    "grow": "continue a run with a deeper network, in a new folder",
    "predict": "classify pictures with the network of a run",
    "report": "make the page of a run, or one that compares several",
    "summary": "print the layer table of an architecture",
    "sweep": "train a recipe over several seeds: mean, deviation and 95 % interval",
    "train": "train a network; the default command",
}


def main(argv: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """Train as the flags say; returns the exit code."""
    return guarded(run_of("train"), sys.argv[1:] if argv is None else argv, prog)


def command(argv: Sequence[str] | None = None, prog: str = "resnet-jax") -> int:
    """Run the command that the first word names, or train if the first word is a flag; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["-h"], ["--help"], ["--version"]):
        return guarded(print_version if words[0] == "--version" else print_help, words[1:], prog)
    if not words or words[0].startswith("-"):
        return main(words, prog)
    return guarded(run_command, words, prog)


def run_command(words: Sequence[str], prog: str) -> int | None:
    """Run the command of the first word with the other words as its flags."""
    name, *flags = words
    if name not in COMMANDS:
        raise ConfigError(unknown("command", name, COMMANDS))
    return run_of(name)(flags, f"{prog} {name}")


def run_of(name: str) -> Run:
    """The function of a command. Its module is imported when the function is called."""

    def run(argv: Sequence[str], prog: str) -> int | None:
        return getattr(importlib.import_module(f"resnet_jax.cli.{name}"), name)(argv, prog)

    return run


def print_help(words: Sequence[str], prog: str) -> None:
    """Print the commands, each with what it does."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, line in COMMANDS.items()]
    print(f"usage: {prog} COMMAND [FLAGS]\n       {prog} [--help | --version]\n\ncommands:", *lines, sep="\n")
    print(f"\n{prog} COMMAND --help lists the flags of a command and shows examples. {prog} FLAGS trains.")


def print_version(words: Sequence[str], prog: str) -> None:
    """Print the versions of the package and of jax."""
    print(versions())


def guarded(run: Run, argv: Sequence[str], prog: str) -> int:
    """Run a command; returns the exit code. Errors of the user are one line on stderr, with exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # people read log files during a run; names of files and classes may lie outside an ASCII terminal's letters
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        cores.limit_xla()
        with terminable(), enough_memory():
            return run(argv, prog) or 0
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


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that half-written files are removed."""

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)  # the second one ends it at once
        sys.exit(128 + signum)

    with handled(stop, signal.SIGTERM):
        yield
