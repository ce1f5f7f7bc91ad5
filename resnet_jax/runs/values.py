"""Values of options: from the text of a flag, or from Python and TOML, to the plain value that JSON holds."""

import dataclasses
import functools
import os
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from resnet_jax.arguments import nearest, real, scalar, shown, truth, whole
from resnet_jax.errors import ConfigError, unknown
from resnet_jax.paths import user_path

PATH = "path"
PathText = Annotated[str, PATH]  # the kind of a field that holds a path: user_path reads it


@functools.cache
def kinds_of(options: type) -> dict[str, Any]:
    """The type of each field of a dataclass."""
    return get_type_hints(options, include_extras=True)


def settle(options: Any) -> None:
    """Make every field of a frozen dataclass plain, in its __post_init__; ConfigError for a value of another type.

    Empty text is the default of a path, and stays as it is. Where a path is given, in a flag or in a recipe, `plain`
    refuses empty text.
    """
    for name, kind in kinds_of(type(options)).items():
        value = getattr(options, name)
        if PATH in metadata_of(kind) and isinstance(value, str) and not value:
            continue
        if not is_part(kind):
            object.__setattr__(options, name, plain(name, kind, value))
        elif not isinstance(value, kind):
            raise ConfigError(f"{name}: give a {kind.__name__}, not a {type(value).__name__}")


def is_part(kind: Any) -> bool:
    """Whether the kind of a field is a dataclass, whose fields are options themselves."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def plain(name: str, kind: Any, value: Any, flag: str = "") -> Any:
    """The value of a field of this kind as bool, int, float, str, tuple or None; ConfigError for another type.

    Numbers may be scalars of numpy or jax. A float is invalid for an int field, and 1 for a bool field. flag: the name
    of the field in messages.
    """
    flag = flag or f"{name} ({flag_text(name)})"
    if PATH in metadata_of(kind):
        return str(user_path(value, flag))
    value = scalar(value)
    if choices := choices_of(kind):
        if type(value) in {type(choice) for choice in choices} and value in choices:
            return value
        if isinstance(value, str):
            raise ConfigError(unknown(name.replace("_", " "), value, map(str, choices)))
        raise ConfigError(f"{flag} {shown(value)}: give one of {', '.join(map(repr, choices))}")
    if get_origin(bare(kind)) is tuple:
        return _plain_list(name, get_args(bare(kind))[0], value, flag)
    if optional(kind):
        return None if value is None else whole(flag, value)
    return {bool: truth, int: whole, float: real, str: _text}[bare(kind)](flag, value)


def _plain_list(name: str, item_kind: Any, value: Any, flag: str) -> tuple[Any, ...]:
    """The value of a list as `plain` returns it. The message for an item of another type shows the whole list."""
    wanted = "numbers, such as (5, 8)" if item_kind is float else "a list of texts"
    items = _items(flag, value, wanted)
    try:
        return tuple(plain(name, item_kind, item, flag) for item in items)
    except ConfigError:
        if PATH in metadata_of(item_kind):
            raise  # it says what is wrong with the path
        raise ConfigError(f"{flag} {shown(items)}: give {wanted}") from None


def from_file(kind: Any, value: Any) -> Any:
    """The value of a field in a recipe, before `plain`: one text for a list of texts is split as a flag's words are."""
    several = get_origin(bare(kind)) is tuple and get_args(bare(kind))[0] is str
    return value.split() if several and isinstance(value, str) else value


def _text(flag: str, value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{flag} {shown(value)}: give text")
    return os.fsdecode(value)


def _items(flag: str, value: Any, wanted: str) -> list[Any]:
    if isinstance(value, str | bytes | dict) or not isinstance(value, Iterable):
        raise ConfigError(f"{flag} {shown(value)}: give {wanted}")
    return list(value)


def flag_text(name: str) -> str:
    """The flag of a field, as it is typed: --learning-rate for learning_rate."""
    return "--" + name.replace("_", "-")


def metadata_of(kind: Any) -> tuple[Any, ...]:
    """What Annotated adds to a kind."""
    return getattr(kind, "__metadata__", ())


def bare(kind: Any) -> Any:
    """The kind without what Annotated adds to it."""
    return get_args(kind)[0] if metadata_of(kind) else kind


def choices_of(kind: Any) -> tuple[Any, ...]:
    """The values of a Literal, and of a union of bool and a Literal; () for other kinds."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    members = _members(kind)
    return (False, True, *get_args(members[1])) if members[:1] == (bool,) else ()


def optional(kind: Any) -> bool:
    """Whether a kind is `int | None`."""
    return type(None) in _members(kind)


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else ()


def from_text(name: str, kind: Any, text: str) -> Any:
    """The value that the word of a flag stands for, before `plain`; ConfigError for a number that is none."""
    flag = flag_text(name)
    if kind is int or optional(kind):
        if optional(kind) and text.lower() == "none":
            return None
        try:
            return int(text)
        except ValueError:
            raise ConfigError(f"{flag} {shown(text)}: give a whole number{nearest(_as_float(text))}") from None
    if kind is float or (get_origin(kind) is tuple and get_args(kind)[0] is float):
        number = _as_float(text)
        if number is None:
            several = f"numbers with spaces between them, such as {flag} 5 8"
            raise ConfigError(f"{flag} {shown(text)}: give {'a number, such as 0.1' if kind is float else several}")
        return number
    return text


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
