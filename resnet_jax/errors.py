"""What a user can get wrong. The command prints such an error as one line and exits with 2."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Base of the errors below: the message names what, which value, what is allowed and what to do."""


class ConfigError(UserError):
    """A flag, a recipe or an architecture that cannot be."""


class DataError(UserError):
    """A data set that is missing, damaged or not what it should be."""


class CheckpointError(UserError):
    """A run folder or a checkpoint that cannot be used."""


class InteropError(UserError):
    """Weights or a file of them that cannot be taken, or a network that cannot be written."""


class TrainingError(UserError):
    """A run that cannot go on."""


class CallbackError(UserError):
    """A callback that raised; the cause is the exception itself, and checkpoints written before are good."""


def unknown(what: str, value: str, allowed: Iterable[str]) -> str:
    """The message for a name that is not in a table: the nearest name, then all of them."""
    names = sorted(allowed)
    near = difflib.get_close_matches(value, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown {what} {value!r}: {hint}choose one of {', '.join(names)}"


def listed(names: Iterable[str]) -> str:
    """The first five names, and how many more there are."""
    names = list(names)
    more = len(names) - 5
    return ", ".join(names[:5]) + (f" and {more} more" if more > 0 else "")


def one_line(error: Exception) -> str:
    """The first line of what an error says, or its kind."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
