"""The weights that a run starts from, adapted to its network."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from tqdm import tqdm

from resnet_jax.errors import ConfigError, listed
from resnet_jax.interop import Weights, fold_stem
from resnet_jax.models import Network
from resnet_jax.models.summary import variable_shapes
from resnet_jax.paths import check_readable
from resnet_jax.runs.build import DataInfo
from resnet_jax.runs.config import Config
from resnet_jax.runs.opened import folder_weights, open_weights

Flat = dict[tuple[str, ...], Any]
HEAD = ("params", "head")


def read_pretrained(config: Config, model: Network, info: DataInfo) -> dict[str, Any] | None:
    """The variables of --pretrained: converted weights, a run's folder or a file. None without the flag.

    An RGB stem is folded for images of one channel. A head with another number of classes is left out, and the run
    initialises its own. Prints a warning if --freeze keeps weights that were trained with other preprocessing. Raises
    a UserError, before anything is compiled, if the weights or the options of the network are invalid.
    """
    path, channels = config.model.pretrained, info.image_shape[-1]
    if not path:
        return None
    like = variable_shapes(model, channels)
    weights = opened(config)
    if weights.arch != config.arch:
        raise ConfigError(
            f"--pretrained {path} holds {weights.arch}: give --arch {weights.arch}, or weights of {config.arch}"
        )
    held = adapted(traverse_util.flatten_dict(weights.variables), channels, model.num_classes)
    check_fit(path, held, traverse_util.flatten_dict(jax.tree.map(np.shape, like)))
    if config.model.freeze and (text := other_preprocessing(config, weights, info)):
        tqdm.write(f"warning: {text}")
    return traverse_util.unflatten_dict(held)


def opened(config: Config) -> Weights:
    """Open --pretrained. A file is read as the run's network; a folder names its own."""
    path = Path(config.model.pretrained)
    check_readable(path, "--pretrained")
    if path.is_dir() and (folder := folder_weights(path)):
        return folder
    ours = {"width": config.model.width, "squeeze_excitation": config.model.squeeze_excitation}
    return open_weights(path, config.arch, head="any", options=ours | {"stem": config.stem_form}, report=tqdm.write)


def other_preprocessing(config: Config, weights: Weights, info: DataInfo) -> str:
    """Describe in what the images of the run differ from those that the weights expect; empty if they do not."""
    if "mean" not in weights.preprocess:
        return ""
    theirs = tuple(weights.preprocess.get(name) for name in ("mean", "std"))
    ours = (info.mean, info.std) if config.data.normalize else (None, None)
    measured = config.data.normalize and info.mean is None
    if not measured and same(theirs[0], ours[0]) and same(theirs[1], ours[1]):
        return ""
    described = "those of its own training images" if measured else described_as(*ours)
    return (
        f"the weights in {config.model.pretrained} expect images with {described_as(*theirs)}, and this run's have "
        f"{described}; --freeze keeps the weights as they are, so train without --freeze for the best accuracy"
    )


def same(a: Any, b: Any) -> bool:
    """Tell whether two means or deviations are equal: None, a number, or one for each channel."""
    if a is None or b is None:
        return a is b
    a, b = np.ravel(a), np.ravel(b)
    return (a.size == b.size or 1 in (a.size, b.size)) and bool(np.allclose(a, b, atol=1e-4))


def described_as(mean: Any, std: Any) -> str:
    """Describe the normalisation of images."""
    if mean is None:
        return "values in [0, 1]"
    mean, std = (", ".join(f"{value:.4g}" for value in np.ravel(values)) for values in (mean, std))
    return f"mean ({mean}) and deviation ({std})"


def adapted(held: Flat, channels: int, num_classes: int) -> Flat:
    """The variables with the stem folded for `channels`, and without a head for another number of classes."""
    held, stem = dict(held), ("params", "stem", "conv", "kernel")
    if stem in held:
        held[stem] = fold_stem(held[stem], channels)
    kernel = held.get((*HEAD, "kernel"))
    if kernel is not None and kernel.shape[-1] != num_classes:
        return {path: leaf for path, leaf in held.items() if path[:2] != HEAD}
    return held


def check_fit(folder: str, held: Flat, wanted: Flat) -> None:
    """Raise ConfigError if names or shapes differ from the network's. A missing head is allowed."""
    missing = {path for path in wanted.keys() - held.keys() if path[:2] != HEAD}
    shapes = {path for path in held.keys() & wanted.keys() if np.shape(held[path]) != wanted[path]}
    if wrong := missing | (held.keys() - wanted.keys()) | shapes:
        names = listed(sorted("/".join(path) for path in wrong))
        raise ConfigError(
            f"--pretrained {folder} does not fit the network in {names}; "
            "give the --stem, --width and --squeeze-excitation that the weights have"
        )
