"""Converted weights that a run starts from, adapted to its network."""

from typing import Any

import jax
import numpy as np
from flax import traverse_util

from resnet_jax.errors import ConfigError, listed
from resnet_jax.interop import fold_stem, load_weights
from resnet_jax.models import ResNet
from resnet_jax.models.summary import variable_shapes
from resnet_jax.runs.config import Config

Flat = dict[tuple[str, ...], Any]
HEAD = ("params", "head")


def read_pretrained(config: Config, model: ResNet, channels: int) -> dict[str, Any] | None:
    """The variables of --pretrained; None without the flag.

    An RGB stem is folded for images of one channel. A head with another number of classes is left out, and the run
    initialises its own. Raises InteropError or ConfigError, before anything is compiled, if the weights or the
    options of the network are invalid.
    """
    like = variable_shapes(model, channels)  # also without weights: it raises for invalid options of the network
    if not config.model.pretrained:
        return None
    weights = load_weights(config.model.pretrained)
    if weights.arch != config.arch:
        raise ConfigError(
            f"--pretrained {config.model.pretrained} holds {weights.arch}: give --arch {weights.arch}, "
            f"or weights of {config.arch}"
        )
    held = fitted(traverse_util.flatten_dict(weights.variables), channels, model.num_classes)
    check_fit(config.model.pretrained, held, traverse_util.flatten_dict(jax.tree.map(np.shape, like)))
    return traverse_util.unflatten_dict(held)


def fitted(held: Flat, channels: int, num_classes: int) -> Flat:
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
