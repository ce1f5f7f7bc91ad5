"""From flags and recipes (configs/*.toml) to a Config."""

import contextlib
import dataclasses
import difflib
import io
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from resnet_jax.errors import ConfigError, unknown
from resnet_jax.runs.checks import check
from resnet_jax.runs.config import PARTS, Config

T = TypeVar("T")


def parse(argv: Sequence[str], prog: str = "train.py", default: Config | None = None) -> Config:
    """Read the flags, and check the Config."""
    return check(read(argv, prog, default))


def read(argv: Sequence[str], prog: str = "train.py", default: Config | None = None) -> Config:
    """The Config of a recipe with the values of the flags; ConfigError, of one line, for invalid flags.

    The recipe is that of --config; else that of --arch; else finetune with --pretrained, and default without it.
    default: the config of a run that is resumed; it replaces every recipe but that of --config.
    """
    asked = _parse(argv, prog)
    recipe = find_recipe(asked.config) if asked.config else None
    if recipe is None and default is None:
        known = recipes()
        recipe = known.get(asked.arch) or known.get("finetune" if asked.model.pretrained else "default")
    flags = recipe_flags(recipe) if recipe else []
    try:  # alone first, so that an error names the file
        _parse(flags, prog)
    except ConfigError as error:
        raise ConfigError(f"{recipe}: {error}") from None
    return _parse([*flags, *argv], prog, default)


def load_recipe(name: str) -> Config:
    """The Config of configs/NAME.toml, or of a .toml file; ConfigError, with the nearest name, for an unknown one."""
    return parse(["--config", name])


def recipes() -> dict[str, Path]:
    """Every recipe of the package, by name."""
    package = Path(__file__).resolve().parent.parent
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), package)
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe, from its name or its path."""
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise ConfigError(f"--config {name}: there is no such file; give a .toml file or a name of configs/")
        return Path(name)
    known = recipes()
    if name not in known:
        raise ConfigError(unknown("recipe", name, known) + ", or give a .toml file")
    return known[name]


def recipe_flags(path: Path) -> list[str]:
    """The values of a recipe as flags, so that errors in a file are found in the same way as on the command line."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a valid TOML file: {error}") from None
    flags = list(_flags(values))
    if "--help" in flags:
        raise ConfigError(f"{path}: a recipe has no key help; leave it out")
    return flags


def _flags(values: dict[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        flag = key.replace("_", "-")
        if isinstance(value, dict):  # tables group keys as --help does; flags have no prefix
            yield from _flags(value)
        elif isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        elif isinstance(value, list):
            yield from (f"--{flag}", *map(str, value))
        else:
            yield f"--{flag}={value}"  # one word: a value may begin with a dash


def _parse(argv: Sequence[str], prog: str, default: Config | None = None) -> Config:
    return parse_as(Config, argv, prog, default or Config())


def parse_as(kind: type[T], argv: Sequence[str], prog: str, default: T | None = None) -> T:
    """A dataclass from flags, by tyro; ConfigError with one line from tyro's drawn box."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            if default is None:
                return tyro.cli(kind, prog=prog, args=list(argv))
            return tyro.cli(kind, prog=prog, args=list(argv), default=default)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise ConfigError(one_line(stderr.getvalue(), kind)) from None


def one_line(box: str, kind: type = Config) -> str:
    """The message in tyro's drawn box, and the nearest flag of `kind` or the nearest choice.

    The box has a title, then parts between horizontal rules; the message is the first part. It has a frame if stdout
    is UTF-8.
    """
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ ")
        if text.startswith("╭") or re.fullmatch("[-─╰╯]{3,}", text):
            parts.append([])
        else:
            parts[-1].append(text)
    message = " ".join(parts[1]).strip()
    if choice := re.fullmatch(r"invalid choice '(.*)' for argument '--(\S+)'\. Expected one of \((.*)\)\.", message):
        return unknown(choice[2], choice[1], re.findall(r"'([^']*)'", choice[3]))
    bad = re.match(r"Unrecognized options:.*?--([\w-]+)", message)
    nearest = difflib.get_close_matches(bad[1], _all_flags(kind), n=1) if bad else []
    return message + (f": did you mean --{nearest[0]}?" if nearest else "; --help lists every flag")


def _all_flags(kind: type) -> list[str]:
    parts = (Config, *PARTS.values()) if kind is Config else (kind,)
    names = [field.name for part in parts for field in dataclasses.fields(part)]
    return [name.replace("_", "-") for name in names if name not in PARTS]
