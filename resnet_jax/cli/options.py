"""Types and options that several commands share."""

import contextlib
import importlib.metadata
import json
import math
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Protocol

from resnet_jax.runs.argv import Positional
from resnet_jax.runs.values import PathText, flag_text

Stem = Literal["auto", "standard", "small"]
OptionalInt = int | None
RunDir = Annotated[PathText, Positional("RUN_DIR")]


class NetworkFlags(Protocol):
    """The flags of a command that describe a network."""

    @property
    def stem(self) -> str: ...
    @property
    def width(self) -> float: ...
    @property
    def squeeze_excitation(self) -> bool: ...


def options_of(asked: NetworkFlags) -> dict[str, Any]:
    """The options of create_model that differ from its defaults."""
    options = {"width": asked.width, "squeeze_excitation": asked.squeeze_excitation}
    held = {name: value for name, value in options.items() if value != {"width": 1.0}.get(name, False)}
    return held if asked.stem == "auto" else held | {"stem": asked.stem}


def flag_of(name: str, value: Any = True) -> str:
    """The flag that gives a field or an option this value."""
    flag = flag_text(name)
    return flag if value is True else f"{flag} {value}"


@contextlib.contextmanager
def notes_apart(as_json: bool) -> Iterator[None]:
    """With --json, what is printed inside the block goes to stderr: stdout holds the JSON document alone."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def print_json(value: Any) -> None:
    """Print one JSON document. NaN and infinite numbers become null, because JSON has none."""
    print(json.dumps(_finite(value), indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def version_of(package: str) -> str:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # resnet_jax itself too, run from a checkout
