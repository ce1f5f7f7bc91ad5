"""The list of --augment: from words such as erasing:probability=0.25,fill=mean to augmentations, and back."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

from resnet_jax.arguments import shown
from resnet_jax.data.augment import AUGMENTATIONS, Augmentation, name_of
from resnet_jax.errors import ConfigError, unknown
from resnet_jax.runs.values import choices_of, from_text, kinds_of


def augmentations(words: Iterable[str]) -> tuple[Augmentation, ...]:
    """The augmentation of each word; ConfigError, which names the word, for an invalid one."""
    return tuple(map(_augmentation, words))


@functools.cache
def _augmentation(word: str) -> Augmentation:
    name, colon, text = word.partition(":")
    if name not in AUGMENTATIONS:
        raise ConfigError(f"--augment {shown(word)}: {unknown('augmentation', name, AUGMENTATIONS)}")
    made, options = AUGMENTATIONS[name], options_of(name)
    values: dict[str, Any] = {}
    for item in text.split(",") if colon else ():
        option, equals, value = item.partition("=")
        if option not in options:
            allowed = f"choose one of {', '.join(options)}" if options else "it has none"
            raise ConfigError(f"--augment {shown(word)}: unknown option {option!r} of {name}: {allowed}")
        if not equals or not value or option in values:
            wrong = "is given twice" if option in values else f"needs a value, as in {name}:{option}=VALUE"
            raise ConfigError(f"--augment {shown(word)}: {option} {wrong}")
        try:
            values[option] = value if choices_of(options[option]) else from_text(option, options[option], value)
        except ConfigError as error:
            raise ConfigError(f"--augment {shown(word)}: {str(error).removeprefix('--')}") from None
    if missing := [field.name for field in _fields(name) if field.name not in values and _is_needed(field)]:
        raise ConfigError(f"--augment {shown(word)}: {name} needs {missing[0]}, as in {name}:{missing[0]}=4")
    try:
        return made(**values) if isinstance(made, type) else made
    except ConfigError as error:
        raise ConfigError(f"--augment {shown(word)}: {error}") from None


def options_of(name: str) -> dict[str, Any]:
    """The kind of each option of an augmentation of the table."""
    kinds = kinds_of(AUGMENTATIONS[name]) if _fields(name) else {}
    return {field.name: kinds[field.name] for field in _fields(name)}


def words_of(augmentation: Augmentation) -> str:
    """The shortest word that stands for an augmentation of the table: without options that have their default."""
    name = name_of(augmentation)
    own = ((field, getattr(augmentation, field.name)) for field in _fields(name))
    options = ",".join(f"{field.name}={value}" for field, value in own if value != field.default)
    return f"{name}:{options}" if options else name


def _fields(name: str) -> tuple[dataclasses.Field[Any], ...]:
    made: Any = AUGMENTATIONS[name]
    return dataclasses.fields(made) if dataclasses.is_dataclass(made) else ()


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING
