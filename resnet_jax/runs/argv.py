"""Flags from the fields of a dataclass: an argparse parser that reads them and prints their help."""

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

from resnet_jax.arguments import shown
from resnet_jax.errors import ConfigError
from resnet_jax.runs.values import bare, choices_of, flag_text, from_text, is_part, kinds_of, metadata_of, plain
from resnet_jax.versions import versions

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
ALIASES |= dict.fromkeys(("augmentation", "augmentations", "mixup", "cutmix", "cutout", "random_erasing"), "augment")

DASHES = "-\u2013\u2014"  # editors turn two hyphens into an en dash or an em dash
TRUTHS = {"true", "false", "yes", "no", "on", "off", "1", "0", "t", "f", "y", "n"}
EXAMPLES = "examples:"
METAVARS = {int: "INT", int | None: "INT", float: "FLOAT", str: "STR"}


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
        return flag_text(self.name)

    @property
    def place(self) -> str:
        """The metavar of a positional; "" for a flag."""
        return next((data.metavar for data in metadata_of(self.kind) if isinstance(data, Positional)), "")

    @property
    def switches(self) -> bool:
        """Whether it stands without a value."""
        return self.kind is bool or choices_of(self.kind)[:2] == (False, True)

    @property
    def spellings(self) -> list[str]:
        """Every way to type it, with hyphens and then with underscores; the name of a positional."""
        names = [self.name, f"no_{self.name}"] if self.switches else [self.name]
        return [self.name] if self.place else ["--" + name.replace("_", mark) for mark in "-_" for name in names]

    @property
    def default_text(self) -> str:
        """The default, for the end of its help."""
        if self.default is dataclasses.MISSING:
            return "" if self.place else " (required)"
        text = " ".join(map(str, self.default)) if isinstance(self.default, tuple) else str(self.default)
        return f" (default: {text or repr(text)})"

    @property
    def words(self) -> tuple[int | str | None, str]:
        """How many words it takes, and what stands for them in the help: nargs and metavar of argparse."""
        choices = [choice for choice in choices_of(self.kind) if isinstance(choice, str)]
        if self.place and get_origin(bare(self.kind)) is tuple:
            return "*", self.place
        if self.place or self.switches:
            return 0 if self.kind is bool else "?", self.place or "".join(choices)
        if get_origin(self.kind) is tuple:
            return "*", METAVARS[get_args(self.kind)[0]]
        return None, "{" + ",".join(choices) + "}" if choices else METAVARS[bare(self.kind)]


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


class Given(argparse.Action):
    """Stores the value of a flag as its field holds it, and reports a flag that is given twice."""

    def __init__(self, flag: Flag, **options: Any) -> None:
        super().__init__(**options)
        self.flag = flag

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        flag, kind = self.flag, bare(self.flag.kind)
        if option_string and flag.switches:
            value = values or option_string[2:].replace("-", "_") == flag.name
        elif isinstance(values, list):
            value = [from_text(flag.name, kind, text) for text in values]
        else:
            value = from_text(flag.name, kind, values)
        value = plain(flag.name, flag.kind, value, flag.place or flag.text)
        if getattr(namespace, flag.name, value) != value:
            print(f"{flag.text} is given twice: the last value counts", file=sys.stderr)  # stdout may hold JSON
        setattr(namespace, flag.name, value)


class Help(argparse.RawDescriptionHelpFormatter):
    """Fills descriptions to the width of the terminal; examples keep their lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(EXAMPLES):
            return super()._fill_text(text, width, indent)
        return textwrap.fill(" ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent)


@functools.cache
def parser_of(kind: type, prog: str, examples: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    """The parser of a dataclass. Its namespace holds only the fields that are given. examples: see parse_as."""
    flags, docs = flags_of(kind), field_docs(kind)
    places = (f"{flag.place} ..." if flag.words[0] == "*" else flag.place for flag in flags.values() if flag.place)
    usage = " ".join([prog, *places, "[-h] [FLAGS]"])
    options: dict[str, Any] = {"argument_default": argparse.SUPPRESS, "exit_on_error": False, "allow_abbrev": False}
    options |= {"formatter_class": Help, "epilog": epilog(prog, examples)}
    parser = argparse.ArgumentParser(prog, usage, kind.__doc__, prefix_chars=DASHES, **options)
    # argparse takes -1 as a value; -inf and, before Python 3.14, -1e-3 as flags
    parser._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)", re.IGNORECASE)
    groups: dict[str, Any] = {"": parser}
    parts = {name: part for name, part in kinds_of(kind).items() if is_part(part)}
    groups |= {name: parser.add_argument_group(f"{name} options", part.__doc__) for name, part in parts.items()}
    parser.add_argument("--version", action="version", version=versions(), help="Print the versions, and exit.")
    for flag in flags.values():
        nargs, metavar = flag.words
        about: dict[str, Any] = {"action": Given, "flag": flag, "metavar": metavar}
        about |= {"choices": [metavar]} if flag.switches and nargs else {}  # auto, of --resume
        names = flag.spellings[: 2 if nargs == 0 else 1]
        text = (docs[flag.name] + flag.default_text).replace("%", "%%")
        groups[flag.part].add_argument(*names, nargs=nargs, help=text, **about)
        for name in {*flag.spellings} - {*names}:
            count = 0 if re.match("--no[-_]", name) else nargs
            parser.add_argument(name, nargs=count, help=argparse.SUPPRESS, **about)
    return parser


def epilog(prog: str, examples: tuple[str, ...]) -> str | None:
    """The examples as people type them, for the end of the help."""
    command = f"python {prog}" if prog.endswith(".py") else prog
    return "\n".join((EXAMPLES, *(f"  {command} {words}" for words in examples))) if examples else None


def parse_as(kind: type[T], argv: Sequence[str], prog: str, examples: tuple[str, ...] = ()) -> T:
    """A dataclass from the words of a command; ConfigError, of one line, for invalid ones.

    examples: words for the command, each with what it does after two spaces and a #; the help shows them.
    """
    return kind(**needed(kind, read_words(kind, argv, prog, examples)))


def needed(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values themselves; ConfigError if a field without a default has none."""
    for flag in flags_of(kind).values():
        if flag.default is dataclasses.MISSING and flag.name not in values:
            doc = field_docs(kind)[flag.name]
            raise ConfigError(f"{flag.place or flag.text} is needed: {doc[:1].lower()}{doc[1:]}")
    return values


def read_words(kind: type, argv: Sequence[str], prog: str, examples: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values that the words of a command give, by name of the field. --help prints the help and exits."""
    flags = flags_of(kind)
    switches = {name: flag for flag in flags.values() if flag.kind is bool for name in flag.spellings}
    for word, after in itertools.pairwise([*argv, ""]):
        name, equals, text = word.partition("=")
        if name in switches and (equals or after.lower() in TRUTHS):
            alone = " or ".join(switches[name].spellings[:2])
            raise ConfigError(f"{name} {shown(text if equals else after)}: it takes no value; write {alone} alone")
    parser = parser_of(kind, prog, examples)
    several = any(flag.place and flag.words[0] == "*" for flag in flags.values())
    try:  # several words by their place may have flags between them
        found, unknown = (parser.parse_known_intermixed_args if several else parser.parse_known_args)(argv)
    except argparse.ArgumentError as error:
        flag = flags.get(str(error.argument_name)[2:].replace("-", "_"))
        if flag and not flag.switches:
            raise ConfigError(f"{flag.text} needs a value: {flag.text} {flag.words[1]}") from None
        raise ConfigError(f"{error.argument_name}: {error.message}; --help lists every flag") from None
    for word in unknown[:1]:
        name = word.partition("=")[0]
        what = f"unknown flag {shown(name)}" if word.startswith(tuple(DASHES)) else f"unexpected word {shown(word)}"
        raise ConfigError(what + hint(name, flags))
    return vars(found)


def hint(name: str, flags: Mapping[str, Flag]) -> str:
    """The flag that a wrong name may stand for."""
    names = [flag.name for flag in flags.values() if not flag.place]
    wanted = re.sub(r"[\s-]+", "_", name.strip(DASHES + " ")).lower()
    off = wanted.startswith("no_")
    wanted = wanted.removeprefix("no_")
    starts = [known for known in names if wanted and known.startswith(wanted)]
    near = difflib.get_close_matches(wanted, names, n=1)
    found = wanted if wanted in names else ALIASES.get(wanted) or (starts if len(starts) == 1 else near or [""])[0]
    if found not in names:
        return "; --help lists every flag"
    return f": did you mean --{'no-' if off and flags[found].switches else ''}{found.replace('_', '-')}?"
