"""What the command does beside training: convert, export, grow, summary. Each has its flags in a dataclass."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from resnet_jax.errors import ConfigError, InteropError
from resnet_jax.interop import (
    Weights,
    from_torch,
    load_weights,
    read_state_dict,
    save_weights,
    to_torch,
    write_state_dict,
)
from resnet_jax.interop.export import PLATFORMS, export_program
from resnet_jax.models import Arch, create_model, get_arch, layer_summary, multiply_adds
from resnet_jax.training import grow_run, load
from resnet_jax.training.config import parse_as
from resnet_jax.training.rundir import CONFIG_FILE

Stem = Literal["auto", "standard", "small"]
OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT")]
RunDir = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
ArchName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ARCH")]


@dataclasses.dataclass(frozen=True)
class Convert:
    """From a PyTorch file of weights to a folder for --pretrained; with --to-torch from a folder or a run to a file."""

    source: Source
    """A .safetensors or .pth file; with --to-torch a folder of converted weights, or a run's (its best checkpoint)."""
    out: str
    """The folder to make; with --to-torch the .safetensors or .pth file to make."""
    arch: str = ""
    """The architecture of the PyTorch file; not with --to-torch, where the source tells."""
    to_torch: bool = False
    """Make PyTorch's file of our weights, instead of ours of PyTorch's."""
    head: Literal["keep", "reset"] = "keep"
    """reset: a new head, of --num-classes."""
    num_classes: OptionalInt = None
    """Classes of a new head (default 10)."""
    in_channels: OptionalInt = None
    """1: sum the stem's kernel over the colours, for grey images."""
    allow_nan: bool = False
    """Take NaN and infinite weights as they are."""
    stem: Stem = "auto"
    """The stem of the network in the file, where it is not the architecture's own."""
    width: float = 1.0
    """Its width, as --width of training."""
    squeeze_excitation: bool = False
    """Whether its blocks have squeeze-and-excitation."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run's network (its best checkpoint) as StableHLO: uint8 images, any number of them, to probabilities."""

    run_dir: RunDir
    """The run's folder."""
    out: str = ""
    """The file to write. Empty: RUN_DIR/predict.jax_export."""


@dataclasses.dataclass(frozen=True)
class Grow:
    """Make a run of another one's latest checkpoint, its network deeper by blocks that start as the identity."""

    run_dir: RunDir
    """The run's folder. It stays as it is."""
    out: str
    """The folder to make, for --resume --run-dir."""
    stage: int
    """The stage that the blocks come into, from 1."""
    blocks: int = 1
    """How many."""
    position: OptionalInt = None
    """Which block of the stage the first of them will be, from 1, or from 2 where the first one halves or projects.
    None: they come at its end."""
    epochs: OptionalInt = None
    """Epochs of the new run in all, those behind it counted; a cosine schedule is laid out anew for them, so that one
    that has come to its end needs them. None: those of the old one."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Print the layer table of an architecture, and its multiply-adds for one image."""

    arch: ArchName
    """A name of the table, or of a network grown from it, such as resnet18-2-2-3-2."""
    image_size: int = 224
    """Height and width in pixels."""
    in_channels: int = 3
    """Channels of the images."""
    num_classes: int = 1000
    """Classes of the head."""
    stem: Stem = "auto"
    """standard, small, or auto: the architecture's own."""
    width: float = 1.0
    """Times as many channels."""
    squeeze_excitation: bool = False
    """Squeeze-and-excitation in every block."""


def options_of(asked: Convert | Summary) -> dict[str, Any]:
    """create_model's options, those that are not its defaults."""
    options = {"width": asked.width, "squeeze_excitation": asked.squeeze_excitation}
    held = {name: value for name, value in options.items() if value != {"width": 1.0}.get(name, False)}
    return held if asked.stem == "auto" else held | {"stem": asked.stem}


def flag_of(name: str, value: Any = True) -> str:
    """The flag that gives a field or an option this value."""
    flag = "--" + name.replace("_", "-")
    return flag if value is True else f"{flag} {value}"


def convert(argv: Sequence[str], prog: str) -> None:
    """PyTorch's weights to ours, or back."""
    asked = parse_as(Convert, argv, prog)
    if asked.to_torch:
        convert_to_torch(asked)
        return
    if not asked.arch:
        raise ConfigError("--arch NAME is needed: the architecture of the file")
    if Path(asked.out).exists():
        check_empty(Path(asked.out))
    options = options_of(asked)
    variables = from_torch(
        read_state_dict(asked.source),
        asked.arch,
        head=asked.head,
        num_classes=asked.num_classes,
        in_channels=asked.in_channels,
        allow_nan=asked.allow_nan,
        **options,
    )
    save_weights(asked.out, Weights(asked.arch, options, variables))
    size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    flags = [f"--arch {asked.arch}", *(flag_of(name, value) for name, value in options.items())]
    print(f"{asked.arch}, {size:,} parameters: {asked.out}; train.py {' '.join(flags)} --pretrained {asked.out}")


def convert_to_torch(asked: Convert) -> None:
    """Our weights, of a folder or a run's best checkpoint, to PyTorch's file."""
    fixed = Convert(asked.source, asked.out, asked.arch, to_torch=True)
    if given := [flag_of(name) for name, value in vars(asked).items() if value != vars(fixed)[name]]:
        raise ConfigError(f"{', '.join(given)}: not with --to-torch, which writes what is there; leave it out")
    if Path(asked.out).exists():
        raise InteropError(f"--out {asked.out} exists; give another file")
    arch, options, variables = weights_of(Path(asked.source))
    if asked.arch not in ("", arch.name):
        raise ConfigError(f"--arch {asked.arch}: {asked.source} holds {arch.name}; leave --arch out")
    state_dict = to_torch(variables, arch, **options)
    write_state_dict(asked.out, state_dict)
    print(f"{arch.name}, {len(state_dict)} tensors: {asked.out}")


def weights_of(folder: Path) -> tuple[Arch, dict[str, Any], dict[str, Any]]:
    """The network, create_model's options and the variables of a folder of weights, or a run's best checkpoint."""
    if not (folder / CONFIG_FILE).is_file():
        weights = load_weights(folder)
        return get_arch(weights.arch), weights.options, weights.variables
    predictor = load(folder)
    config = predictor.config
    options = {"stem": config.stem_form, "width": config.model.width}
    options |= {"squeeze_excitation": config.model.squeeze_excitation}
    return predictor.arch, options, predictor.variables


def check_empty(folder: Path) -> None:
    """Raise InteropError where a folder holds something, before the work and not after it."""
    if not folder.is_dir() or any(folder.iterdir()):
        raise InteropError(f"--out {folder} exists and is not an empty folder; give another one")


def export(argv: Sequence[str], prog: str) -> None:
    """A run's best network as a program of its own."""
    asked = parse_as(Export, argv, prog)
    path = asked.out or str(Path(asked.run_dir) / "predict.jax_export")
    predictor = load(asked.run_dir)
    size = export_program(predictor.probabilities, predictor.image_shape, path)
    shape = ", ".join(map(str, predictor.image_shape))
    print(f"{path}: {size:,} bytes for {', '.join(PLATFORMS)}; uint8 (N, {shape}) to probabilities of")
    print(f"{', '.join(predictor.class_names)}. To run it: jax.export.deserialize(bytearray(content)).call(images)")


def grow(argv: Sequence[str], prog: str) -> None:
    """A run of another one's network, with blocks more."""
    asked = parse_as(Grow, argv, prog)
    made = grow_run(asked.run_dir, asked.out, asked.stage, asked.blocks, asked.position, asked.epochs)
    more = " --epochs MORE" if made.epochs == made.config.epochs else ""
    print(
        f"{made.arch.name}, at step {made.step}, {made.epochs} of {made.config.epochs} epochs done: {asked.out}; "
        f"train.py --resume --run-dir {asked.out}{more}"
    )
    old, new = made.rates
    if old != new:
        print(f"its learning rate goes on at {new:.3g}, where that of {asked.run_dir} would have been {old:.3g}")


def summary(argv: Sequence[str], prog: str) -> None:
    """The layer table."""
    asked = parse_as(Summary, argv, prog)
    for flag, value in (("image-size", asked.image_size), ("in-channels", asked.in_channels)):
        if value < 1:
            raise ConfigError(f"--{flag} {value} must be at least 1")
    model = create_model(asked.arch, asked.num_classes, **options_of(asked))
    shape = (1, asked.image_size, asked.image_size, asked.in_channels)
    print(layer_summary(model, shape))
    print(f"multiply-adds for one image, by XLA's cost analysis: {multiply_adds(model, shape):,}")
