"""From flags and recipes (configs/*.toml) to a Config."""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnet_jax.errors import ConfigError, unknown
from resnet_jax.paths import check_readable, user_path
from resnet_jax.runs.argv import flags_of, hint, read_words
from resnet_jax.runs.config import PARTS, Config
from resnet_jax.runs.effects import check_effects, unused
from resnet_jax.runs.values import from_file, plain

Values = dict[str, Any]  # of fields, by name


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a command asks for. named: the values of its flags; recipe: the file of --config, or None."""

    named: Values
    recipe: Path | None

    def new(self) -> Config:
        """The config of a new run: the recipe with the values of the flags. ConfigError for an invalid one.

        Without --config the recipe is that of --arch, or else finetune with --pretrained, and default without it. A
        value of the recipe that has no effect beside the flags is left out.
        """
        from resnet_jax.runs.checks import check  # imports jax

        recipe = self.recipe or self._own_recipe()
        values = recipe_values(recipe)
        alone = changed(Config(), values)
        config = check(changed(alone, self.named))
        check_effects(config, self.named)
        try:
            check_effects(alone, [name for name in unused(config) if name in values and name not in self.named])
        except ConfigError as error:
            raise ConfigError(f"{recipe}: {error}") from None
        return without_unused(config)

    def resumed(self, old: Config, run_dir: Path) -> Config:
        """The config of a run that is resumed, with the values of --config and of the flags."""
        from resnet_jax.runs.checks import check  # both import jax
        from resnet_jax.runs.override import check_fixed

        config = changed(old, recipe_values(self.recipe) if self.recipe else {})
        config = changed(config, {"resume": True} | self.named | {"run_dir": run_dir})
        check_fixed(f"the run in {run_dir}", old, config)  # first: another network has other limits on its values
        check(config)
        check_effects(config, self.named)
        if self.recipe:  # what it holds without effect was left out of the run's config too
            config = without_unused(config)
        source = config.data.source_dir
        if source and "source_dir" not in self.named and not Path(source).is_dir():  # the data was prepared from it
            config = changed(config, {"source_dir": ""})
        return config

    def start(self) -> Config:
        """The config as it is before it is known whether a run is resumed. It is not checked."""
        recipe = self.recipe or self._own_recipe()
        return changed(changed(Config(), recipe_values(recipe)), self.named)

    def _own_recipe(self) -> Path:
        known = recipes()
        fallback = known["finetune" if self.named.get("pretrained") else "default"]
        return known.get(self.named.get("arch", Config.arch), fallback)


def ask(argv: Sequence[str], prog: str = "train.py", examples: tuple[str, ...] = ()) -> Asked:
    """Read the flags of training; ConfigError, of one line, for invalid flags. examples: see parse_as."""
    named = read_words(Config, argv, prog, examples)
    return Asked(named, find_recipe(named["config"]) if "config" in named else None)


def parse(argv: Sequence[str], prog: str = "train.py") -> Config:
    """The checked Config of a new run."""
    return ask(argv, prog).new()


def load_recipe(name: str) -> Config:
    """The Config of configs/NAME.toml, or of a .toml file; ConfigError, with the nearest name, for an unknown one."""
    return Asked({"config": plain("config", str, name)}, find_recipe(plain("config", str, name))).new()


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with other values of fields, wherever they are."""
    flags, parts = flags_of(Config), {}
    for part in PARTS:
        own = {name: value for name, value in values.items() if flags[name].part == part}
        parts[part] = dataclasses.replace(getattr(config, part), **own)
    own = {name: value for name, value in values.items() if not flags[name].part}
    return dataclasses.replace(config, **parts, **own)


def without_unused(config: Config) -> Config:
    """The config with the defaults of the options that have no effect in it."""
    defaults = {name: flag.default for name, flag in flags_of(Config).items()}
    return changed(config, {name: defaults[name] for name in unused(config)})


def recipes() -> dict[str, Path]:
    """Every recipe of the package, by name."""
    return {path.stem: path for path in own_files("configs", ".toml")}


def own_files(folder: str, suffix: str) -> list[Path]:
    """The files of a folder that a wheel has inside the package, and a checkout beside it."""
    package = Path(__file__).resolve().parent.parent
    found = next((f for f in (package / folder, package.parent / folder) if f.is_dir()), package)
    return sorted(found.glob(f"*{suffix}"))


def find_recipe(name: str, flag: str = "--config") -> Path:
    """The file of a recipe, from its name or its path. flag: what names it, for messages."""
    known = recipes()
    if name in known:
        return known[name]
    path = user_path(name, flag)
    check_readable(path, flag)
    if path.suffix != ".toml" and name != ".toml":
        raise ConfigError(unknown("recipe", name, known) + ", or give a .toml file")
    if not path.is_file():
        raise ConfigError(f"{flag} {name}: there is no such file; give a .toml file or a name of configs/")
    return path


def recipe_values(path: Path) -> Values:
    """The values of a recipe, by name of the field; ConfigError, which names the file, for invalid ones."""
    try:
        held = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a valid TOML file: {error}") from None
    flags, values = flags_of(Config), {}
    for key, value in _leaves(held):
        name = key.replace("-", "_")
        if name == "config":
            raise ConfigError(f"{path}: a recipe cannot take its values from another one; leave config out")
        if name not in flags:
            raise ConfigError(f"{path}: unknown key {key}{hint(key, flags)}")
        if name in values:
            raise ConfigError(f"{path}: {key} is given twice; leave one of them out")
        try:
            values[name] = plain(name, flags[name].kind, from_file(flags[name].kind, value))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    return values


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values. Tables group keys as --help does; their names do not matter."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield key, value
