"""The command line of train.py that makes the config of a run again."""

import dataclasses
import shlex
from typing import Any

from resnet_jax.errors import ConfigError, UserError
from resnet_jax.runs.argv import Flag, flags_of
from resnet_jax.runs.config import Config
from resnet_jax.runs.effects import unused
from resnet_jax.runs.flags import Asked, changed, find_recipe, parse

NEW_RUN = {"run_dir": "", "resume": False, "override": False}  # it gets a folder of its own


def repeated(config: Config) -> Config:
    """The config of a new run that repeats another one, in a folder of its own."""
    return changed(config, NEW_RUN)


def words_of(config: Config) -> list[str]:
    """The words after train.py; `parse` turns them into repeated(config). ConfigError if no words do.

    They name the architecture and the recipe, and then every option that differs from the recipe. A recipe that is
    not there any more is left out: then all its options are spelled out.
    """
    wanted = repeated(config)
    errors: list[str] = []
    for recipe in dict.fromkeys((config.config, "")):
        try:
            words = _words(wanted, recipe)
            found = parse(words)
        except UserError as error:
            errors.append(str(error))
            continue
        if dataclasses.replace(found, config=wanted.config) == wanted:
            return words
        errors.append("the flags give another config")
    raise ConfigError(f"no command line gives this config: {errors[0]}")


def command_of(config: Config) -> str:
    """The command line as it is typed, with a line for each flag."""
    words = ["python", "train.py"]
    lines = [[]]
    for word in words_of(config):
        if word.startswith("--") and lines[-1]:
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return " ".join(words) + " " + " \\\n    ".join(" ".join(line) for line in lines)


def _words(config: Config, recipe: str) -> list[str]:
    """The words, given a recipe or the architecture's own."""
    named: dict[str, Any] = {"arch": config.arch}
    named |= {"config": recipe} if recipe else {}
    named |= {"pretrained": config.model.pretrained} if config.model.pretrained else {}  # it has a recipe of its own
    base = Asked(named, find_recipe(recipe) if recipe else None).start()
    words = [word for name, value in named.items() for word in (f"--{name}", str(value))]
    for flag in flags_of(Config).values():
        value, before = value_of(config, flag), value_of(base, flag)
        if flag.name in named or flag.name == "config" or value == before:
            continue
        if value == flag.default and flag.name in unused(changed(config, {flag.name: before})):
            continue  # the other flags make the recipe's value useless, and it is left out
        words += spelled(flag, value)
    return words


def value_of(config: Config, flag: Flag) -> Any:
    """The value of a flag in a config."""
    return getattr(getattr(config, flag.part) if flag.part else config, flag.name)


def spelled(flag: Flag, value: Any) -> list[str]:
    """A flag and its value as words."""
    if isinstance(value, bool):
        return [flag.text if value else f"--no-{flag.text[2:]}"]
    values = value if isinstance(value, tuple) else (value,)
    return [flag.text, *(number_text(one) if isinstance(one, float) else str(one) for one in values)]


def number_text(number: float) -> str:
    """A number in its shortest form that is read as the same number."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)
