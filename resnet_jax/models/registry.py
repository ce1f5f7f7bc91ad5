"""The table of architectures, as data, and the model that a row of it stands for."""

import dataclasses
from functools import partial
from typing import Any

from jax import numpy as jnp

from resnet_jax.errors import ConfigError, unknown
from resnet_jax.models.blocks import Residual, ResNeXtBlock
from resnet_jax.models.layers import Dtype, ModuleDef
from resnet_jax.models.resnet import STEMS, ResNet


@dataclasses.dataclass(frozen=True)
class Arch:
    """An architecture as plain data.

    stages: (number of blocks, channels) of each. block: a name of BLOCKS. stem: "standard" (7x7 and max-pool, for
    large images) or "small" (3x3, for small ones). group_width and bot_mul are the ResNeXt block's.
    """

    name: str
    stages: tuple[tuple[int, int], ...]
    block: str = "residual"
    stem: str = "standard"
    group_width: int = 16
    bot_mul: float = 1.0


STAGES_18 = ((2, 64), (2, 128), (2, 256), (2, 512))
STAGES_34 = ((3, 64), (4, 128), (6, 256), (3, 512))

ARCHS = {
    arch.name: arch
    for arch in (
        Arch("resnet18", STAGES_18),
        Arch("resnet34", STAGES_34),
        # groups of 16 channels and no narrowing, as in the seed's ResNeXtBlock(32, 16, 1)
        Arch("resnext18", STAGES_18, block="resnext"),
        Arch("resnext34", STAGES_34, block="resnext"),
    )
}


def block_of(arch: Arch) -> ModuleDef:
    """The block of an architecture, bound to what the trunk does not hand it."""
    if arch.block == "resnext":
        return partial(ResNeXtBlock, groups=arch.group_width, bot_mul=arch.bot_mul)
    return Residual


def arch_from_dict(values: dict[str, Any]) -> Arch:
    """The Arch that dataclasses.asdict made these values of, perhaps by way of JSON."""
    stages = tuple((int(blocks), int(channels)) for blocks, channels in values["stages"])
    return Arch(**{**values, "stages": stages})


def list_models() -> list[str]:
    """Every name of the table, sorted."""
    return sorted(ARCHS)


def get_arch(name: str) -> Arch:
    """The table's row of that name; ConfigError with the nearest name if there is none."""
    if name not in ARCHS:
        raise ConfigError(unknown("architecture", name, ARCHS))
    return ARCHS[name]


def create_model(
    name: str | Arch,
    num_classes: int = 10,
    *,
    stem: str | None = None,
    dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
) -> ResNet:
    """The Flax module of an architecture: model.init(key, x), model.apply(variables, x, train=False).

    stem overrides the architecture's. dtype and axis_name are ResNet's. Raises ConfigError.
    """
    arch = get_arch(name) if isinstance(name, str) else name
    stem = stem or arch.stem
    if stem not in STEMS:
        raise ConfigError(unknown("stem", stem, STEMS))
    if num_classes < 1:
        raise ConfigError(f"num_classes {num_classes} must be at least 1")
    return ResNet(arch.stages, num_classes, block_of(arch), stem, dtype, axis_name)
