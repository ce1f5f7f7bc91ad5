"""convert: PyTorch weights to a folder of ours, and back."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax

from resnet_jax.cli.options import OptionalInt, Stem, flag_of, options_of
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
from resnet_jax.models import Arch, get_arch
from resnet_jax.runs import load
from resnet_jax.runs.argv import Positional, parse_as
from resnet_jax.runs.rundir import CONFIG_FILE
from resnet_jax.runs.values import PathText

Source = Annotated[PathText, Positional("SOURCE")]


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert a PyTorch weight file to a folder for --pretrained; with --to-torch, a folder or a run to a file."""

    source: Source
    """A .safetensors or .pth file; with --to-torch a folder of converted weights, or a run's (its best checkpoint)."""
    out: PathText
    """The folder to make; with --to-torch the .safetensors or .pth file to make."""
    arch: str = ""
    """The architecture of the PyTorch file. Not with --to-torch: the source names it."""
    to_torch: bool = False
    """Write a PyTorch file of our weights, instead of reading one."""
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


def convert(argv: Sequence[str], prog: str) -> None:
    """Convert PyTorch's weights to ours, or back."""
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
    """Write our weights, from a folder or a run's best checkpoint, to a PyTorch file."""
    fixed = Convert(asked.source, asked.out, asked.arch, to_torch=True)
    if given := [flag_of(name) for name, value in vars(asked).items() if value != vars(fixed)[name]]:
        raise ConfigError(
            f"{', '.join(given)}: not with --to-torch, which writes the weights as they are; leave it out"
        )
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
    config, arch = predictor.config, predictor.arch  # a folder with a config.json is a run of train.py
    options = {"stem": config.stem_form, "width": config.model.width}
    options |= {"squeeze_excitation": config.model.squeeze_excitation}
    return arch, options, predictor.variables


def check_empty(folder: Path) -> None:
    """Raise InteropError for a folder that is not empty, before the work begins."""
    if not folder.is_dir() or any(folder.iterdir()):
        raise InteropError(f"--out {folder} exists and is not an empty folder; give another one")
