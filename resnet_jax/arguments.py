"""Checks of the numbers that a caller passes to a function, or types as the value of a flag."""

import math
import numbers
from typing import Any

from resnet_jax.errors import ConfigError, UserError


def whole(name: str, value: Any, least: float = -math.inf, error: type[UserError] = ConfigError) -> int:
    """The value as an int; raises `error` unless it is a whole number from `least` on. It may be a scalar of numpy."""
    number = scalar(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Integral):
        raise error(f"{name} {shown(value)}: give a whole number{nearest(number)}")
    if number < least:
        raise error(f"{name} {number} must be at least {least}")
    return int(number)


def real(name: str, value: Any, wanted: str = "a number, such as 0.1", error: type[UserError] = ConfigError) -> float:
    """The value as a float; raises `error` for anything that is no real number. wanted: what to give, for messages."""
    number = scalar(value)
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise error(f"{name} {shown(value)}: give {wanted}")
    try:
        return float(number)
    except OverflowError:
        raise error(f"{name} {shown(value)} is out of range; give {wanted}") from None


def truth(name: str, value: Any, error: type[UserError] = ConfigError) -> bool:
    """The value as a bool; raises `error` unless it is True or False, which may be a scalar of numpy or jax."""
    held = scalar(value)
    if not isinstance(held, bool):
        raise error(f"{name} {shown(value)}: give True or False")
    return held


def scalar(value: Any) -> Any:
    """A scalar of numpy, jax or torch as the number of Python; every other value as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def nearest(value: Any) -> str:
    """The whole number that a float may stand for, as the end of a message; "" for other values."""
    is_whole = isinstance(value, float) and math.isfinite(value) and value == int(value)
    return f", such as {int(value)}" if is_whole and abs(value) < 1e15 else ""


def shown(value: Any) -> str:
    """A value in a message of one line: text as it was typed if it is printable, else the start of its repr."""
    if isinstance(value, str) and value.isprintable() and value:
        return value
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
