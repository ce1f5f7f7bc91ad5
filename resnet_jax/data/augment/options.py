"""Checks of the options of augmentations. Each makes a field of a frozen dataclass plain, or raises ConfigError."""

import math
from typing import Any, get_args

from resnet_jax.arguments import real, shown, whole
from resnet_jax.errors import ConfigError, unknown


def settle_whole(owner: Any, name: str, least: int) -> None:
    """A whole number from `least` on."""
    object.__setattr__(owner, name, whole(_title(owner, name), getattr(owner, name), least))


def settle_real(owner: Any, name: str, least: float, most: float = math.inf) -> None:
    """A finite number from `least` to `most`."""
    value = real(_title(owner, name), getattr(owner, name))
    if not least <= value <= most or math.isinf(value):  # false for nan too
        allowed = f"finite and at least {least:g}" if math.isinf(most) else f"from {least:g} to {most:g}"
        raise ConfigError(f"{_title(owner, name)} {value:g} is out of range: it must be {allowed}")
    object.__setattr__(owner, name, value)


def settle_positive(owner: Any, name: str, most: float = math.inf) -> None:
    """A finite number above 0, and at most `most`."""
    value = real(_title(owner, name), getattr(owner, name))
    if not 0 < value <= most or math.isinf(value):
        allowed = "finite and above 0" if math.isinf(most) else f"above 0 and at most {most:g}"
        raise ConfigError(f"{_title(owner, name)} {value:g} is out of range: it must be {allowed}")
    object.__setattr__(owner, name, value)


def settle_choice(owner: Any, name: str, kind: Any) -> None:
    """A value of a Literal."""
    value = getattr(owner, name)
    if not isinstance(value, str):
        raise ConfigError(f"{_title(owner, name)} {shown(value)}: give one of {', '.join(get_args(kind))}")
    if value not in get_args(kind):
        raise ConfigError(unknown(_title(owner, name).replace(":", ""), value, get_args(kind)))


def _title(owner: Any, name: str) -> str:
    return f"{type(owner).__name__}: {name}"
