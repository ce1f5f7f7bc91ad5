"""Errors that the user can correct. The command prints the message in one line and exits with code 2."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Base class of the errors below. The message names the argument, its value, what is allowed and what to do."""


class ConfigError(UserError):
    """Invalid flag, recipe or architecture."""


class DataError(UserError):
    """Missing, damaged or invalid data set."""


class CheckpointError(UserError):
    """Missing, damaged or incompatible run folder or checkpoint."""


class InteropError(UserError):
    """Weights that do not fit the network, or a weights file that cannot be read or written."""


class TrainingError(UserError):
    """Training cannot continue."""


class CallbackError(UserError):
    """A callback that raised; the cause is the exception itself, and checkpoints written before are good."""


def unknown(what: str, value: str, allowed: Iterable[str]) -> str:
    """Return the message for an unknown name: it suggests the nearest name and lists all of them."""
    names = sorted(allowed)
    near = difflib.get_close_matches(value, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown {what} {value!r}: {hint}choose one of {', '.join(names)}"


def listed(names: Iterable[str]) -> str:
    """Return the first five names and the number of the others."""
    names = list(names)
    more = len(names) - 5
    return ", ".join(names[:5]) + (f" and {more} more" if more > 0 else "")


def one_line(error: Exception, length: int = 200) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty.

    A line that is longer than `length` ends after a whole word, and then with three dots.
    """
    line = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip()
    if len(line) <= length:
        return line
    words = line[: length - 3].rpartition(" ")[0] if " " in line[: length - 3] else line[: length - 4]
    return words.rstrip(" ,:;") + " ..."
