"""Flags from the fields of a dataclass: reading them from the words of a command, and their help."""

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_origin

from resnet_jax.errors import ConfigError
from resnet_jax.runs.values import bare, choices_of, from_text, is_part, kinds_of, metadata_of, optional, plain, shown

T = TypeVar("T")

# what other programs call our flags: for the hint in a message
ALIASES = {"lr": "learning_rate", "bs": "batch_size", "wd": "weight_decay", "model": "arch", "network": "arch"}
ALIASES |= {"nepochs": "epochs", "num_epochs": "epochs", "max_epochs": "epochs", "n_epochs": "epochs"}
ALIASES |= {"data": "data_folder", "data_path": "data_folder", "data_root": "data_dir", "root": "data_dir"}
ALIASES |= {"val_split": "validation", "patience": "early_stopping", "se": "squeeze_excitation", "amp": "precision"}
ALIASES |= {"output": "run_dir", "output_dir": "run_dir", "out_dir": "run_dir", "save_dir": "run_dir"}
ALIASES |= {"gpus": "devices", "num_gpus": "devices", "dtype": "precision", "fp16": "precision", "bf16": "precision"}
ALIASES |= {"hflip": "flip", "scheduler": "schedule", "lr_scheduler": "schedule", "warmup": "warmup_epochs"}
ALIASES |= {"img_size": "image_size", "size": "image_size", "weights": "pretrained", "checkpoint": "resume"}
ALIASES |= {"auto_resume": "resume", "milestones": "decay_epochs", "gamma": "decay_factor", "output_file": "out"}

TRUTHS = {"true", "false", "yes", "no", "on", "off", "1", "0", "t", "f", "y", "n"}
METAVARS = {int: "INT", float: "FLOAT", str: "STR"}


@dataclasses.dataclass(frozen=True)
class Positional:
    """Marks a field, in Annotated, that is given by its place and not by a flag."""

    metavar: str


@dataclasses.dataclass(frozen=True)
class Flag:
    """A field of a dataclass as a flag. part: the field of Config that holds it, such as optim, or ""."""

    name: str
    kind: Any
    part: str
    default: Any

    @property
    def text(self) -> str:
        """As it is typed."""
        return "--" + self.name.replace("_", "-")

    @property
    def place(self) -> str:
        """The metavar of a positional; "" for a flag."""
        return next((data.metavar for data in metadata_of(self.kind) if isinstance(data, Positional)), "")

    @property
    def switches(self) -> bool:
        """Whether it stands without a value."""
        return self.kind is bool or choices_of(self.kind)[:2] == (False, True)

    @property
    def metavar(self) -> str:
        """What stands for the value in the help."""
        kind = bare(self.kind)
        if choices := choices_of(kind):
            return "{" + ",".join(choice for choice in choices if isinstance(choice, str)) + "}"
        if get_origin(kind) is tuple:
            return "[FLOAT ...]"
        return "INT" if optional(kind) else METAVARS[kind]


def flags_of(kind: type) -> dict[str, Flag]:
    """The flags of a dataclass, by name; the fields of a field that is a dataclass are flags of a group."""
    flags: dict[str, Flag] = {}
    for field in dataclasses.fields(kind):
        held = kinds_of(kind)[field.name]
        if is_part(held):
            inner = flags_of(held).values()
            flags |= {flag.name: dataclasses.replace(flag, part=field.name) for flag in inner}
        else:
            flags[field.name] = Flag(field.name, held, "", field.default)
    return flags


def field_docs(kind: type) -> dict[str, str]:
    """The string below each field of a class and of the dataclasses in its fields, from their source."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    docs: dict[str, str] = {}
    for part in filter(is_part, kinds_of(kind).values()):
        docs |= field_docs(part)
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            docs[field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return docs


def parse_as(kind: type[T], argv: Sequence[str], prog: str) -> T:
    """A dataclass from the words of a command; ConfigError, of one line, for invalid ones."""
    values, flags = read_words(kind, argv, prog), flags_of(kind)
    for flag in flags.values():
        if flag.default is dataclasses.MISSING and flag.name not in values:
            doc = field_docs(kind)[flag.name]
            raise ConfigError(f"{flag.place or flag.text} is needed: {doc[:1].lower()}{doc[1:]}")
    return kind(**values)


def read_words(kind: type, argv: Sequence[str], prog: str) -> dict[str, Any]:
    """The values that the words of a command give, by name of the field. --help prints the help and exits."""
    if {"-h", "--help"} & set(argv):
        show_help(kind, prog)
        raise SystemExit(0)
    flags, words, values = flags_of(kind), list(argv), {}
    places = [flag for flag in flags.values() if flag.place]
    while words:
        word = words.pop(0)
        if _is_flag(word):
            name, equals, text = word.lstrip("-\u2013\u2014").partition("=")
            flag, on = _find(word, name, flags)
            value = _value(flag, on, text if equals else None, words)
        elif places:
            flag, value = places.pop(0), word
        else:
            raise ConfigError(f"unexpected word {shown(word)}{hint(word.partition('=')[0], flags)}")
        value = plain(flag.name, flag.kind, value, flag.place or flag.text)
        if values.get(flag.name, value) != value:
            print(f"{flag.text} is given twice: the last value counts")
        values[flag.name] = value
    return values


def _is_flag(word: str) -> bool:
    """Whether a word is a flag, and not a value such as -1; an en dash or an em dash was a hyphen once."""
    return bool(re.match(r"--|-[A-Za-z]|[\u2013\u2014]", word)) and not re.fullmatch(r"-(inf|nan)\w*", word.lower())


def _find(word: str, name: str, flags: Mapping[str, Flag]) -> tuple[Flag, bool]:
    """The flag of a name, and False if the name switches it off."""
    field = name.replace("-", "_")
    for found, on in ((field, True), (field.removeprefix("no_"), False)):
        flag = flags.get(found)
        if word.startswith("--") and flag and not flag.place and (on or flag.switches):
            return flag, on
    raise ConfigError(f"unknown flag {shown(word.partition('=')[0])}{hint(name, flags)}")


def hint(name: str, flags: Mapping[str, Flag]) -> str:
    """The flag that a wrong name may stand for."""
    names = [flag.name for flag in flags.values() if not flag.place]
    wanted = re.sub(r"[\s-]+", "_", name.strip("-\u2013\u2014 ")).lower()
    off = wanted.startswith("no_")
    wanted = wanted.removeprefix("no_")
    starts = [known for known in names if wanted and known.startswith(wanted)]
    near = difflib.get_close_matches(wanted, names, n=1)
    found = wanted if wanted in names else ALIASES.get(wanted) or (starts if len(starts) == 1 else near or [""])[0]
    if found not in names:
        return "; --help lists every flag"
    return f": did you mean --{'no-' if off and flags[found].switches else ''}{found.replace('_', '-')}?"


def _value(flag: Flag, on: bool, text: str | None, words: list[str]) -> Any:
    """The value of a flag: the text after its =, or the words after it, which are taken off."""
    if flag.switches:
        return _switched(flag, on, text, words)
    if get_origin(flag.kind) is tuple:
        given = [] if text is None else [text]
        while text is None and words and not _is_flag(words[0]):
            given.append(words.pop(0))
        return [from_text(flag.name, flag.kind, word) for word in given]
    if text is None:
        if not words or _is_flag(words[0]):
            raise ConfigError(f"{flag.text} needs a value: {flag.text} {flag.metavar}")
        text = words.pop(0)
    return from_text(flag.name, bare(flag.kind), text)


def _switched(flag: Flag, on: bool, text: str | None, words: list[str]) -> Any:
    """True, False, or one of the words that a switch also takes."""
    more = [choice for choice in choices_of(flag.kind) if isinstance(choice, str)] if on else []
    if text is None and words and (words[0] in more or words[0].lower() in TRUTHS):
        text = words.pop(0)
    if text is None or text in more:
        return text or on
    off = "--no-" + flag.text[2:]
    raise ConfigError(
        f"{flag.text if on else off} {shown(text)}: it takes no value"
        f"{' but ' + ' or '.join(more) if more else ''}; write {flag.text} or {off} alone"
    )


def show_help(kind: type, prog: str) -> None:
    """Print what each flag means."""
    flags, docs = flags_of(kind), field_docs(kind)
    places = [flag.place for flag in flags.values() if flag.place]
    parser = argparse.ArgumentParser(prog, " ".join([prog, *places, "[-h] [FLAGS]"]), kind.__doc__)
    groups: dict[str, Any] = {"": parser}
    parts = {name: part for name, part in kinds_of(kind).items() if is_part(part)}
    groups |= {name: parser.add_argument_group(f"{name} options", part.__doc__) for name, part in parts.items()}
    for flag in flags.values():
        default = " ".join(map(str, flag.default)) if isinstance(flag.default, tuple) else flag.default
        default = default if default != "" else "''"
        end = "" if default is dataclasses.MISSING and flag.place else f" (default: {default})"
        end = " (required)" if default is dataclasses.MISSING and not flag.place else end
        about: dict[str, Any] = {"help": (docs[flag.name] + end).replace("%", "%%")}
        names = [flag.place] if flag.place else [flag.text]
        if flag.kind is bool:
            names, about = [flag.text, "--no-" + flag.text[2:]], about | {"action": "store_true"}
        elif not flag.place:
            about |= {"metavar": flag.metavar.strip("[]{}") if flag.switches else flag.metavar}
            about |= {"nargs": "?"} if flag.switches else {}
        groups[flag.part].add_argument(*names, **about)
    parser.print_help()
