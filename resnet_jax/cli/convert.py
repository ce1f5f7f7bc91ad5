"""convert: weights of PyTorch or of a run to a folder of ours, and back."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from resnet_jax.cli.options import OptionalInt, Stem, flag_of, notes_apart, options_of, print_json
from resnet_jax.errors import ConfigError, InteropError
from resnet_jax.paths import check_file_writable, check_readable, check_writable
from resnet_jax.runs.argv import Positional, parse_as
from resnet_jax.runs.config import MAX_SIDE
from resnet_jax.runs.values import PathText

if TYPE_CHECKING:
    from resnet_jax.interop import Weights

Source = Annotated[PathText, Positional("SOURCE")]
EXAMPLES = (
    "resnet50.pth --arch resnet50 --out weights/resnet50",
    "model.safetensors --arch tv_resnet18 --head reset --num-classes 10 --in-channels 1 --out weights/gray",
    "runs/NAME --to-torch --out resnet18.safetensors  # a run's best checkpoint, for PyTorch",
)


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert a file of weights, or a run, to a folder for --pretrained; with --to-torch, a folder to a file."""

    source: Source
    """A file of weights (.safetensors, .pth or .npz; its content tells), a run's folder (its best checkpoint), or a
    folder of converted weights."""
    out: PathText
    """The folder to make; with --to-torch the .safetensors or .pth file to make."""
    arch: str = ""
    """The architecture of a file. A folder names its architecture."""
    to_torch: bool = False
    """Write a PyTorch file of our weights, instead of reading one."""
    entry: str = ""
    """The entry or prefix of a checkpoint to read, if several fit the architecture, such as state_dict_ema."""
    head: Literal["keep", "reset"] = "keep"
    """reset: a new head for --num-classes."""
    num_classes: OptionalInt = None
    """Classes of a new head (default 10)."""
    in_channels: OptionalInt = None
    """1: sum the stem's kernel over the colours, for grey images."""
    allow_nan: bool = False
    """Accept NaN and infinite weights."""
    stem: Stem = "auto"
    """The stem of the network in the file, if it is not the architecture's own."""
    width: float = 1.0
    """The width of the network in the file, as --width of training."""
    squeeze_excitation: bool = False
    """Whether its blocks have squeeze-and-excitation."""
    class_names: PathText = ""
    """A text file with the name of a class on each line. Default: ImageNet's, for its weights."""
    mean: tuple[float, ...] = ()
    """What to subtract from images in [0, 1]: a number, or one for each channel. Default: ImageNet's for its weights,
    none for others."""
    std: tuple[float, ...] = ()
    """The standard deviation to divide by: one number or one for each channel."""
    image_size: int = 0
    """Height and width in pixels that images are resized to. 0: 224, or 32 for a small stem."""
    json: bool = False
    """Print the result as JSON."""


def convert(argv: Sequence[str], prog: str) -> None:
    """Convert weights to ours, or back, and print the result."""
    asked = parse_as(Convert, argv, prog, EXAMPLES)
    with notes_apart(asked.json):
        made, lines = (convert_to_torch if asked.to_torch else convert_to_ours)(asked)
    if asked.json:
        print_json(made)
    else:
        print(*lines, sep="\n")


def convert_to_ours(asked: Convert) -> tuple[dict[str, Any], list[str]]:
    """Make the folder; returns the result, for JSON, and the lines for people."""
    import jax

    from resnet_jax.interop import save_weights
    from resnet_jax.runs.converted import sizes
    from resnet_jax.runs.opened import open_weights

    check_readable(Path(asked.out), "--out", InteropError)
    if Path(asked.out).exists():
        check_empty(Path(asked.out))
    check_writable(Path(asked.out), "--out", InteropError)
    names = read_names(asked.class_names) if asked.class_names else ()
    check_numbers(asked)
    weights = open_weights(
        asked.source,
        asked.arch,
        head=asked.head,
        num_classes=asked.num_classes,
        in_channels=asked.in_channels,
        allow_nan=asked.allow_nan,
        entry=asked.entry,
        options=options_of(asked),
        report=print,
    )
    described = describe(weights, asked, names)
    save_weights(asked.out, described)
    size = sum(leaf.size for leaf in jax.tree.leaves(weights.variables["params"]))
    flags = [f"--arch {weights.arch}", *(flag_of(name, value) for name, value in weights.options.items())]
    made = {"out": asked.out, "arch": weights.arch, "options": weights.options, "parameters": size}
    made |= {"preprocess": described.preprocess, "classes": list(described.class_names)}
    trained = f"train.py {' '.join(flags)} --pretrained {asked.out}"
    lines = [f"{weights.arch}, {size:,} parameters: {asked.out}; {trained}"]
    if asked.head == "reset":
        classes = sizes(weights)[0]
        lines.append(f"the head is new and untrained ({classes} classes): train it before you use its predictions")
    return made, [*lines, summary(asked.out, described)]


def read_names(file: str) -> tuple[str, ...]:
    """The lines of --class-names."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InteropError(f"--class-names {file} cannot be read: {error}; give a text file in UTF-8") from None
    return tuple(line.strip() for line in lines if line.strip())


def check_numbers(asked: Convert) -> None:
    """Raise ConfigError for an invalid --mean, --std or --image-size."""
    if (not asked.mean) != (not asked.std):
        raise ConfigError("--mean and --std belong together; give both or none")
    if not all(map(math.isfinite, asked.mean)) or not all(0 < value < math.inf for value in asked.std):
        raise ConfigError(f"--mean {asked.mean} --std {asked.std}: they must be finite, and --std above 0")
    if not 0 <= asked.image_size <= MAX_SIDE:
        raise ConfigError(f"--image-size {asked.image_size} must be 1 to {MAX_SIDE}, or 0 for the default")


def check_size(size: int, weights: "Weights") -> None:
    """Raise ConfigError if the network of the weights cannot take images of this size."""
    from resnet_jax.models import check_input_size, get_arch

    check_input_size(get_arch(weights.arch), (size, size), weights.options.get("stem"))


def describe(weights: "Weights", asked: Convert, names: tuple[str, ...]) -> "Weights":
    """The weights with the class names and the preprocessing of the flags, where they are given."""
    from resnet_jax.runs.converted import sizes

    classes, channels = sizes(weights)
    if asked.class_names and len(names) != classes:
        raise InteropError(f"--class-names {asked.class_names} has {len(names)} names; the weights have {classes}")
    for flag, values in (("--mean", asked.mean), ("--std", asked.std)):
        if len(values) not in (0, 1, channels):
            raise ConfigError(f"{flag} has {len(values)} numbers; give 1, or {channels}: one for each channel")
    given: dict[str, Any] = {"mean": list(asked.mean), "std": list(asked.std)} if asked.mean else {}
    if asked.image_size:
        check_size(asked.image_size, weights)
        given["image_size"] = [asked.image_size] * 2
    preprocess = weights.preprocess | given
    return dataclasses.replace(weights, preprocess=preprocess, class_names=names or weights.class_names)


def summary(folder: str, weights: "Weights") -> str:
    """What load will do with images: one line."""
    held = weights.preprocess
    images = "in [0, 1]"
    if held.get("mean"):
        images = f"normalised with mean {held['mean']} and deviation {held['std']}"
    elif "mean" not in held:
        images += " (--mean and --std are unknown)"
    names = weights.class_names
    classes = f"{names[0]} to {names[-1]}" if names else "unknown (--class-names FILE)"
    return f"load({folder!r}) predicts from images {images}; class names: {classes}"


def convert_to_torch(asked: Convert) -> tuple[dict[str, Any], list[str]]:
    """Write our weights, from a folder or a run's best checkpoint, to a PyTorch file; returns as convert_to_ours."""
    from resnet_jax.interop import to_torch, write_state_dict
    from resnet_jax.runs.opened import open_weights

    fixed = Convert(asked.source, asked.out, asked.arch, to_torch=True, json=asked.json)
    if given := [flag_of(name) for name, value in vars(asked).items() if value != vars(fixed)[name]]:
        raise ConfigError(
            f"{', '.join(given)}: not with --to-torch, which writes the weights as they are; leave it out"
        )
    check_readable(Path(asked.out), "--out", InteropError)
    if Path(asked.out).exists():
        raise InteropError(f"--out {asked.out} exists; give another file")
    check_file_writable(Path(asked.out), "--out", InteropError)
    if Path(asked.source).is_file():
        raise InteropError(f"{asked.source} is a file; --to-torch takes a run's folder or one that convert made")
    weights = open_weights(asked.source, asked.arch, report=print)
    state_dict = to_torch(weights.variables, weights.arch, **weights.options)
    write_state_dict(asked.out, state_dict)
    made = {"out": asked.out, "arch": weights.arch, "tensors": len(state_dict)}
    return made, [f"{weights.arch}, {len(state_dict)} tensors: {asked.out}"]


def check_empty(folder: Path) -> None:
    """Raise InteropError for a folder that is not empty, before the work begins."""
    if not folder.is_dir() or any(folder.iterdir()):
        raise InteropError(f"--out {folder} exists and is not an empty folder; give another one")
