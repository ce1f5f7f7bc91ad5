"""Weights that a run starts from: converted ones, made to fit its network."""

from typing import Any

import jax
import numpy as np
from flax import traverse_util

from resnet_jax.errors import ConfigError, listed
from resnet_jax.interop import fold_stem, load_weights
from resnet_jax.models import ResNet
from resnet_jax.models.summary import variable_shapes
from resnet_jax.training.config import Config
from resnet_jax.training.state import PyTree, TrainState

Flat = dict[tuple[str, ...], Any]
HEAD = ("params", "head")


def read_pretrained(config: Config, model: ResNet, channels: int) -> PyTree | None:
    """The variables that a run's network starts from, of --pretrained; None where it starts from its initialisation.

    A stem for RGB is folded for images of one channel. A head of another number of classes is left out: the run
    starts from its own. InteropError or ConfigError, before anything is compiled, where weights or network cannot be.
    """
    like = variable_shapes(model, channels)  # without weights too, where the network itself cannot be
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
    """The variables with the stem for so many channels, and without a head of other classes."""
    held, stem = dict(held), ("params", "stem", "conv", "kernel")
    if stem in held:
        held[stem] = fold_stem(held[stem], channels)
    kernel = held.get((*HEAD, "kernel"))
    if kernel is not None and kernel.shape[-1] != num_classes:
        return {path: leaf for path, leaf in held.items() if path[:2] != HEAD}
    return held


def check_fit(folder: str, held: Flat, wanted: Flat) -> None:
    """Raise ConfigError where variables have not the shapes of the network's, a missing head aside."""
    missing = {path for path in wanted.keys() - held.keys() if path[:2] != HEAD}
    shapes = {path for path in held.keys() & wanted.keys() if np.shape(held[path]) != wanted[path]}
    if wrong := missing | (held.keys() - wanted.keys()) | shapes:
        names = listed(sorted("/".join(path) for path in wrong))
        raise ConfigError(
            f"--pretrained {folder} does not fit the network in {names}; "
            "give the --stem, --width and --squeeze-excitation that the weights have"
        )


def start_from(state: TrainState, variables: PyTree) -> TrainState:
    """A state of step 0 with these weights, its own where they have none."""
    return state.replace(params=state.params | variables["params"], batch_stats=variables["batch_stats"])
