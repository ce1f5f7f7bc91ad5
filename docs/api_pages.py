"""The library reference: which names it lists, and how it shows their docstrings, which are plain text.

docs/reference.md has a line with MARK. Sphinx reads the sections of all public names in its place.
"""

import contextlib
import importlib
import inspect
import re
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flax import linen as nn

import resnet_jax
from resnet_jax.data.augment import AUGMENTATIONS
from resnet_jax.errors import UserError

if TYPE_CHECKING:
    from sphinx.application import Sphinx  # pyright: ignore[reportMissingImports]  (the extra dev has no Sphinx)

MARK = "<!-- the public names -->"
# The sections of the names that `import resnet_jax` offers, by the package that defines them. Others get its name.
TITLES = {
    "models": "Networks",
    "data": "Data",
    "runs": "Training",
    "training": "Training",
    "interop": "PyTorch weights",
}
# The modules that have more names, as programs write them: where each is, and its names. None: those of __all__.
MODULES: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "resnet_jax.data": ("resnet_jax.data", None),
    "resnet_jax.augment": ("resnet_jax.data.augment", (*AUGMENTATIONS, "apply")),
    "resnet_jax.models": ("resnet_jax.models", None),
    "resnet_jax.ops": ("resnet_jax.ops", None),
    "resnet_jax.interop": ("resnet_jax.interop", None),
    "resnet_jax.runs": ("resnet_jax.runs", None),
    "resnet_jax.training.events": ("resnet_jax.training.events", ()),
    "resnet_jax.errors": ("resnet_jax.errors", tuple(e.__name__ for e in (UserError, *UserError.__subclasses__()))),
}
ITEM = re.compile(r"(?:^|(?<=[.;] ))((?:\w+, )*\w+): ", re.MULTILINE)
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def reference() -> str:
    """The sections of the reference, in MyST's Markdown."""
    sections: dict[str, list[str]] = {title: [] for title in TITLES.values()}
    shown: list[Any] = []
    for name, module in resnet_jax.NAMES.items():
        package = module.split(".")[0]
        sections.setdefault(TITLES.get(package, package.capitalize()), []).append(f"resnet_jax.{name}")
        shown.append(getattr(resnet_jax, name))
    text = "".join(f"## {title}\n\n{described(names)}" for title, names in sections.items() if names)
    for name, (path, names) in MODULES.items():
        module = importlib.import_module(path)
        own = [n for n in names or public_names(module) if not any(getattr(module, n) is value for value in shown)]
        about = "\n".join(restructured((module.__doc__ or "").splitlines(), ()))
        text += f"## {name}\n\n{rst(about)}{described([f'{name}.{n}' for n in own])}"
    return text


def public_names(module: ModuleType) -> list[str]:
    """The functions and classes of __all__."""
    names = getattr(module, "__all__", ())
    return [
        name for name in names if inspect.isroutine(getattr(module, name)) or inspect.isclass(getattr(module, name))
    ]


def described(names: list[str]) -> str:
    """The directives that describe objects, by their full names."""
    return "".join(rst(directive(name)) for name in names)


def directive(name: str) -> str:
    parent, _, last = name.rpartition(".")
    module = importlib.import_module(MODULES[parent][0] if parent in MODULES else parent)
    value = getattr(module, last)
    if not inspect.isclass(value):
        return f".. autofunction:: {name}\n"
    text = f".. autoclass:: {name}\n"
    if issubclass(value, nn.Module | Exception):  # what they inherit is described by Flax and Python
        return text
    return text + "   :members:\n   :inherited-members: object, tuple\n   :special-members: __call__\n"


def rst(text: str) -> str:
    return f"```{{eval-rst}}\n{text}\n```\n\n"


def fill_reference(app: "Sphinx", docname: str, source: list[str]) -> None:
    """Put the sections into the page that has MARK (the event source-read)."""
    if MARK in source[0]:
        source[0] = source[0].replace(MARK, reference())


def show_docstring(app: "Sphinx", what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn the plain text of a docstring into reStructuredText (the event autodoc-process-docstring)."""
    lines[:] = restructured(lines, arguments(obj))


def show_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """A signature without Flax's own fields and with short names (the event autodoc-process-signature)."""
    if signature is None:
        return None
    try:
        found = inspect.signature(obj)
    except (TypeError, ValueError):
        return None
    own = [p.replace(default=Shown.of(p.default)) for p in found.parameters.values()]
    made = getattr(obj, "func", obj)  # what a functools.partial calls
    flax = ("parent", "name") if inspect.isclass(made) and issubclass(made, nn.Module) else ()
    own = [p for p in own if p.name not in flax]
    own = own[1:] if own and own[0].name == "self" else own
    text = str(found.replace(parameters=own))
    text = re.sub(r"(?:\w+\.)+(?=[A-Z])", "", text)  # resnet_jax.data.dataset.ImageDataset -> ImageDataset
    arguments_, arrow, result = text.partition(" -> ")
    return arguments_, result if arrow and result != "None" else None


class Shown:
    """A default value as a reader would write it."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text

    @classmethod
    def of(cls, value: Any) -> Any:
        """The name of a function or class, and the value itself if it is short."""
        if value is inspect.Parameter.empty:
            return value
        text = getattr(value, "__name__", repr(value))
        return cls(text if len(text) <= 40 and "<" not in text else "...")


def arguments(obj: Any) -> set[str]:
    """The names that a docstring may explain: arguments of a function, fields and properties of a class."""
    names: set[str] = set()
    with contextlib.suppress(TypeError, ValueError):
        names |= set(inspect.signature(obj).parameters)
    if inspect.isclass(obj):
        names |= {name for name in dir(obj) if not name.startswith("_")}
        for base in obj.__mro__:
            names |= set(getattr(base, "__annotations__", ()))
    return names


def restructured(lines: Sequence[str], names: set[str] | tuple[()]) -> list[str]:
    """A docstring in plain text as reStructuredText.

    Indented paragraphs become literal blocks. The descriptions of arguments become a list, one item each. A line that
    begins with "Source: ", "Returns " or "Raises " begins a paragraph.
    """
    out: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc("\n".join(lines))):
        if paragraph.startswith("    "):
            out += ["::", "", *(f"    {line}" for line in inspect.cleandoc("\n" + paragraph).splitlines()), ""]
        else:
            out += described_arguments(joined(paragraph), names)
    return out


def joined(paragraph: str) -> list[str]:
    """The logical lines of a paragraph: a wrapped line is joined with the one before it."""
    result: list[str] = []
    for line in paragraph.splitlines():
        begins = re.match(r"(Source|Returns|Raises|[\w, ]+:) ?", line) and not line.startswith(" ")
        ended = not result or result[-1].endswith((".", ":"))
        if begins and ended:
            result.append(line.strip())
        elif result:
            result[-1] += " " + line.strip()
        else:
            result.append(line.strip())
    return result


def described_arguments(lines: list[str], names: set[str] | tuple[()]) -> list[str]:
    """Paragraphs, and a list with an item for each argument that a line describes."""
    out: list[str] = []
    for line in lines:
        starts = [m for m in ITEM.finditer(line) if names and set(m[1].split(", ")) <= set(names)]
        bounds = [m.start() for m in starts] + [len(line)]
        if text := line[: bounds[0]].strip():
            out += ["", escaped(text), ""]
        for match, end in zip(starts, bounds[1:], strict=True):
            out.append(f"- **{escaped(match[1])}**: {escaped(line[match.end() : end].strip())}")
    return [*out, ""]


def escaped(text: str) -> str:
    """Plain text for reStructuredText: words in backticks become literals, and arXiv's numbers links."""
    parts = re.split(r"`([^`]+)`", text)
    plain = [re.sub(r"([\\*`|_])", r"\\\1", part) for part in parts[::2]]
    plain = [ARXIV.sub(r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", part) for part in plain]
    literals = [f"``{part}``" for part in parts[1::2]] + [""]
    return "".join(a + b for a, b in zip(plain, literals, strict=True))


def setup(app: "Sphinx") -> None:
    app.connect("source-read", fill_reference)
    app.connect("autodoc-process-docstring", show_docstring)
    app.connect("autodoc-process-signature", show_signature)
