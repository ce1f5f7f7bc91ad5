"""A folder of converted weights as the parts of a Predictor."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from resnet_jax.data.augment import Preprocess
from resnet_jax.errors import InteropError
from resnet_jax.interop import Weights, load_weights
from resnet_jax.interop.files import WEIGHTS_FILE
from resnet_jax.models import Arch, Network, create_model, get_arch
from resnet_jax.models.summary import variable_shapes
from resnet_jax.runs.build import DataInfo

SIZES = {"standard": 224, "small": 32}  # of images, by stem, if the folder does not say


class Parts(NamedTuple):
    """What a Predictor is made of."""

    model: Network
    variables: dict[str, Any]
    info: DataInfo
    preprocess: Preprocess
    arch: Arch


def is_converted(folder: Path) -> bool:
    """Tell whether `convert` made the folder."""
    return (folder / WEIGHTS_FILE).is_file()


def parts_of(folder: Path) -> Parts:
    """Read a folder of converted weights. Raises InteropError if it is damaged."""
    weights = load_weights(folder)
    arch = get_arch(weights.arch)
    try:
        classes, channels = sizes(weights)
        model = create_model(arch, classes, **weights.options)
        like = variable_shapes(model, channels)
        if like != jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), weights.variables):
            raise ValueError("the arrays are not the network's")
        info, preprocess = info_of(weights, classes, channels)
        if "mean" not in weights.preprocess:
            tqdm.write(
                f"{folder}: the mean and std of the training images are unknown, so the network gets images in [0, 1]; "
                "if it was trained on normalised images, convert it again with --mean and --std"
            )
    except (KeyError, TypeError, ValueError) as error:
        raise InteropError(f"{folder}: {WEIGHTS_FILE} does not fit the arrays ({error}); convert again") from None
    return Parts(model, weights.variables, info, preprocess, arch)


def sizes(weights: Weights) -> tuple[int, int]:
    """Return (number of classes, image channels)."""
    params = weights.variables["params"]
    return params["head"]["kernel"].shape[-1], params["stem"]["conv"]["kernel"].shape[2]


def info_of(weights: Weights, classes: int, channels: int) -> tuple[DataInfo, Preprocess]:
    """Return what the weights say of their data. Unknown class names are class 0, class 1, ...; images keep [0, 1]."""
    held = weights.preprocess
    size = SIZES[weights.options.get("stem") or get_arch(weights.arch).stem]
    height, width = held.get("image_size") or (size, size)
    mean, std = (tuple(held[name]) if held.get(name) else None for name in ("mean", "std"))
    names = weights.class_names or tuple(f"class {number}" for number in range(classes))
    if len(names) != classes or any(np.size(value) not in (1, channels) for value in (mean, std) if value):
        raise ValueError(f"{len(names)} class names, mean {mean} and std {std}")
    info = DataInfo(weights.arch, names, (height, width, channels), 0, mean, std)
    return info, Preprocess((height, width), info.mean_std)
