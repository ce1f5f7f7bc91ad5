"""The table of architectures, as data, and the function that builds the model of one."""

import dataclasses
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from jax import numpy as jnp

from resnet_jax.arguments import real, shown, truth, whole
from resnet_jax.errors import ConfigError, unknown
from resnet_jax.models.airbench import WIDTHS, Airbench, AirbenchConv, check_airbench_size
from resnet_jax.models.blocks import BasicBlock, BottleneckBlock, PreActBlock, Residual, ResNeXtBlock
from resnet_jax.models.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dtype,
    ModuleDef,
    TorchvisionConv,
    TorchvisionDense,
    gelu,
    options_known,
    relu,
)
from resnet_jax.models.resnet import STEM_CHANNELS, STEMS, ResNet, check_image_size

Network = ResNet | Airbench


@dataclasses.dataclass(frozen=True)
class Arch:
    """An architecture as plain data.

    stages: (number of blocks, output channels) for each stage. block: a name in BLOCKS.
    stem: "standard" (7x7 and max-pool, for large images) or "small" (3x3, for small ones), with stem_channels.
    group_width: the width of a group in the chapter's ResNeXt block. groups: the number of groups in the bottleneck.
    bot_mul: an argument of these two blocks. pad_shortcut: an argument of the basic block.
    trunk: "resnet", or "airbench", for which stages are its groups, and which has no blocks and a stem of its own.
    """

    name: str
    stages: tuple[tuple[int, int], ...]
    block: str = "residual"
    stem: str = "standard"
    group_width: int = 16
    bot_mul: float = 1.0
    stem_channels: int = STEM_CHANNELS
    groups: int = 1
    pad_shortcut: bool = False
    trunk: str = "resnet"


# Name of a block -> its class, with the arguments that depend on the Arch bound.
BLOCKS: dict[str, Callable[[Arch], ModuleDef]] = {
    "residual": lambda arch: Residual,
    "resnext": lambda arch: partial(ResNeXtBlock, groups=arch.group_width, bot_mul=arch.bot_mul),
    "basic": lambda arch: partial(BasicBlock, pad_shortcut=arch.pad_shortcut),
    "bottleneck": lambda arch: partial(BottleneckBlock, groups=arch.groups, bot_mul=arch.bot_mul),
    "preact": lambda arch: PreActBlock,
}
TRUNKS = ("resnet", "airbench")
SEED_BLOCKS = ("residual", "resnext")  # the other blocks use torchvision's layers and initialisation

MOST_BLOCKS = 999  # in a stage; the deepest published network, ResNet-1001, has 111
_NUMBER = r"(?:0|[1-9]\d{0,8})"  # without leading zeros, so that a name has one spelling
STAGES_18 = ((2, 64), (2, 128), (2, 256), (2, 512))
STAGES_34 = ((3, 64), (4, 128), (6, 256), (3, 512))
STAGES_50 = ((3, 256), (4, 512), (6, 1024), (3, 2048))
STAGES_101 = ((3, 256), (4, 512), (23, 1024), (3, 2048))
STAGES_152 = ((3, 256), (8, 512), (36, 1024), (3, 2048))

bottleneck = partial(Arch, block="bottleneck", bot_mul=0.25)


def small_resnet(depth: int) -> Arch:
    """Section 4.2 of arXiv:1512.03385: 6n + 2 layers, with shortcuts without parameters (option A)."""
    n = (depth - 2) // 6
    stages = ((n, 16), (n, 32), (n, 64))
    return Arch(f"resnet{depth}", stages, block="basic", stem="small", stem_channels=16, pad_shortcut=True)


def wide_resnet(depth: int, k: int) -> Arch:
    """arXiv:1605.07146, table 1: 6n + 4 layers, k times as wide as ResNet, without dropout."""
    n = (depth - 4) // 6
    stages = ((n, 16 * k), (n, 32 * k), (n, 64 * k))
    return Arch(f"wrn_{depth}_{k}", stages, block="preact", stem="small", stem_channels=16)


ARCHS = {
    arch.name: arch
    for arch in (
        Arch("resnet18", STAGES_18),
        Arch("resnet34", STAGES_34),
        # groups of 16 channels and a bottleneck of full width, as in the chapter's ResNeXtBlock(32, 16, 1)
        Arch("resnext18", STAGES_18, block="resnext"),
        Arch("resnext34", STAGES_34, block="resnext"),
        # torchvision's networks
        Arch("tv_resnet18", STAGES_18, block="basic"),
        Arch("tv_resnet34", STAGES_34, block="basic"),
        bottleneck("resnet50", STAGES_50),
        bottleneck("resnet101", STAGES_101),
        bottleneck("resnet152", STAGES_152),
        bottleneck("resnext50_32x4d", STAGES_50, groups=32, bot_mul=0.5),
        bottleneck("resnext101_32x8d", STAGES_101, groups=32, bot_mul=1.0),
        bottleneck("resnext101_64x4d", STAGES_101, groups=64, bot_mul=1.0),
        bottleneck("wide_resnet50_2", STAGES_50, bot_mul=0.5),
        bottleneck("wide_resnet101_2", STAGES_101, bot_mul=0.5),
        # for small images
        *(small_resnet(depth) for depth in (20, 32, 44, 56, 110)),
        # arXiv:1611.05431, section 5.3
        bottleneck("resnext29_8x64d", ((3, 256), (3, 512), (3, 1024)), stem="small", groups=8, bot_mul=2.0),
        wide_resnet(16, 4),
        wide_resnet(28, 10),
        # arXiv:2404.00498
        Arch("airbench", tuple((1, channels) for channels in WIDTHS), stem="small", trunk="airbench"),
    )
}


def arch_from_dict(values: dict[str, Any]) -> Arch:
    """The inverse of dataclasses.asdict, also for values that were stored as JSON."""
    stages = tuple((int(blocks), int(channels)) for blocks, channels in values["stages"])
    return Arch(**{**values, "stages": stages})


def list_models() -> list[str]:
    """Every name in the table, sorted."""
    return sorted(ARCHS)


def get_arch(name: str) -> Arch:
    """The Arch of a name: of the table, or as grown_name writes it. ConfigError, with the nearest name, for others."""
    if name in ARCHS:
        return ARCHS[name]
    parts = re.fullmatch(rf"(\w+?)((?:-{_NUMBER})+)(?:-w({_NUMBER}(?:-{_NUMBER})*))?", name)
    if parts is None or parts[1] not in ARCHS:
        raise ConfigError(unknown("architecture", name, ARCHS))
    table = check_blocks_of(ARCHS[parts[1]], f"architecture {name!r}")
    blocks = [int(count) for count in parts[2].split("-")[1:]]
    channels = [int(count) for count in parts[3].split("-")] if parts[3] else [c for _, c in table.stages]
    if 0 in blocks + channels or max(blocks) > MOST_BLOCKS:
        raise ConfigError(f"architecture {name!r}: a stage has 1 to {MOST_BLOCKS} blocks, and at least 1 channel")
    if not len(blocks) == len(channels) == len(table.stages):
        raise ConfigError(
            f"architecture {name!r}: {table.name} has {len(table.stages)} stages; give that many numbers of blocks "
            f"(and of channels), such as {grown_name(table, table)}"
        )
    # If the stem and the first stage have equally many channels in the table, they still do after widening.
    stem = channels[0] if table.stem_channels == table.stages[0][1] else table.stem_channels
    return dataclasses.replace(table, name=name, stages=tuple(zip(blocks, channels, strict=True)), stem_channels=stem)


def check_blocks_of(arch: Arch, what: str) -> Arch:
    """The Arch itself; ConfigError, about `what`, if it has no residual blocks."""
    if arch.trunk != "resnet":
        raise ConfigError(f"{what}: {arch.name} has no residual blocks; leave it out, or use another architecture")
    return arch


def check_input_size(arch: Arch, size: tuple[int, ...], stem: str | None = None) -> None:
    """Raise ConfigError if an image of (height, width) pixels is too small. stem: None is the architecture's own."""
    if arch.trunk == "airbench":
        check_airbench_size(size, len(arch.stages))
    else:
        check_image_size(size, stem or arch.stem, len(arch.stages))


def as_arch(arch: str | Arch) -> Arch:
    """The Arch of a name, or the Arch itself; ConfigError for anything else."""
    if isinstance(arch, Arch):
        return arch
    if not isinstance(arch, str):
        raise ConfigError(f"arch {shown(arch)}: give the name of an architecture, such as resnet18, or an Arch")
    return get_arch(arch)


def grown_name(old: Arch, new: Arch) -> str:
    """The name of an Arch that was grown from another: resnet18-2-2-3-2, with -w64-128-320-512 after widening."""
    base = old.name.removesuffix(_channels(old)).removesuffix(_blocks(old))
    widened = old.name.endswith(_channels(old)) or _channels(new) != _channels(old)
    return base + _blocks(new) + (_channels(new) if widened else "")


def _blocks(arch: Arch) -> str:
    return "".join(f"-{blocks}" for blocks, _ in arch.stages)


def _channels(arch: Arch) -> str:
    return "-w" + "-".join(str(channels) for _, channels in arch.stages)


def create_model(
    name: str | Arch,
    num_classes: int = 10,
    *,
    stem: str | None = None,
    dtype: Dtype = jnp.float32,
    axis_name: str | None = None,
    width: float = 1.0,
    zero_init: bool = False,
    dirac_init: bool = False,
    squeeze_excitation: bool = False,
    stochastic_depth: float = 0.0,
    remat: bool = False,
    batch_norm_momentum: float | None = None,
    norm: ModuleDef = BatchNorm,
    act: Activation | None = None,
) -> Network:
    """The Flax module of an architecture: model.init(key, x), model.apply(variables, x, train=False).

    num_classes=0: no head, the model returns the pooled features. stem: instead of the architecture's own.
    width: multiplies the channels of all layers but the head, rounded to multiples of 8. dirac_init: the first C
    filters of a 3x3 convolution with C inputs, and as many outputs or more, start as the identity.
    batch_norm_momentum: the share of the old value that running averages keep (PyTorch's 0.1 is 0.9 here, the
    default). act: None is ReLU, and GELU for airbench. The other arguments are those of ResNet; airbench has no
    blocks, and so no options of blocks. With stochastic_depth, training needs rngs={"dropout": key}. Raises
    ConfigError.
    """
    arch = as_arch(name)
    stem = arch.stem if stem is None else stem
    num_classes = _check_form(arch, stem, num_classes)
    width, stochastic_depth = check_options(arch, width, stochastic_depth)
    options = {"zero_init": zero_init, "squeeze_excitation": squeeze_excitation, "remat": remat}
    options: dict[str, Any] = {option: truth(option, value) for option, value in options.items()}
    norm = _with_momentum(norm, batch_norm_momentum)
    stages = tuple((num_blocks, scaled(channels, width)) for num_blocks, channels in arch.stages)
    dirac = {"dirac": True} if truth("dirac_init", dirac_init) else {}
    if arch.trunk == "airbench":
        _check_no_blocks(arch, stem, **options, stochastic_depth=stochastic_depth)
        widths = tuple(channels for _, channels in stages)
        conv = partial(AirbenchConv, **dirac)
        return Airbench(widths, num_classes, dtype, axis_name, conv, norm=norm, act=act or gelu)
    if dirac and zero_init and arch.block == "preact":
        raise ConfigError(
            f"zero_init=True: the last kernels of {arch.name} start at 0, and with dirac_init=True as the identity; "
            "leave one of them out"
        )
    layers = {} if arch.block in SEED_BLOCKS else {"conv": TorchvisionConv, "dense": TorchvisionDense}
    if dirac:
        layers["conv"] = partial(layers.get("conv", Conv), **dirac)
    return ResNet(
        stages,
        num_classes,
        BLOCKS[arch.block](arch),
        stem,
        dtype,
        axis_name,
        scaled(arch.stem_channels, width),
        preact=arch.block == "preact",
        stochastic_depth=stochastic_depth,
        norm=norm,
        act=act or relu,
        **options,
        **layers,
    )


def _with_momentum(norm: ModuleDef, momentum: float | None) -> ModuleDef:
    """The norm with this momentum, or itself for None. ConfigError if it is invalid or the norm has no momentum."""
    momentum = None if momentum is None else check_momentum(momentum)
    if momentum is None or (norm is BatchNorm and momentum == BatchNorm.momentum):
        return norm
    if "momentum" not in options_known(norm):
        raise ConfigError(f"batch_norm_momentum {momentum}: the norm {norm} has no momentum; leave it out")
    return partial(norm, momentum=momentum)


def check_momentum(momentum: float) -> float:
    """The momentum of batch norms; ConfigError if it is invalid."""
    momentum = real("batch_norm_momentum (--batch-norm-momentum)", momentum)
    if not 0 <= momentum < 1:
        raise ConfigError(
            f"batch_norm_momentum (--batch-norm-momentum) {momentum} must be at least 0 and below 1; it is the share "
            "of the old value that running averages keep, so PyTorch's 0.1 is 0.9 here"
        )
    return momentum


def _check_no_blocks(arch: Arch, stem: str, **options: Any) -> None:
    """Raise ConfigError for an option of residual blocks, or a stem, that this trunk does not have."""
    for option, value in options.items():
        if value:
            check_blocks_of(arch, f"{option} {value}")
    if stem != arch.stem:
        raise ConfigError(f"stem {stem}: {arch.name} has a first convolution of its own; leave it out")


def _check_form(arch: Arch, stem: str, num_classes: int) -> int:
    """The number of classes; ConfigError if one of the three is invalid."""
    if arch.block not in BLOCKS:
        raise ConfigError(unknown("block", arch.block, BLOCKS))
    if arch.trunk not in TRUNKS:
        raise ConfigError(unknown("trunk", arch.trunk, TRUNKS))
    if stem not in STEMS:
        raise ConfigError(unknown("stem", stem, STEMS) if isinstance(stem, str) else f"stem {shown(stem)}: give text")
    num_classes = whole("num_classes", num_classes)
    if num_classes < 0:
        raise ConfigError(f"num_classes {num_classes} must be at least 1, or 0 for a model without a head")
    return num_classes


def check_options(arch: Arch, width: float, stochastic_depth: float) -> tuple[float, float]:
    """These two arguments of create_model; ConfigError if one of them is invalid."""
    width, stochastic_depth = real("width", width), real("stochastic_depth", stochastic_depth)
    if not 0 < width < math.inf:
        raise ConfigError(f"width {width} must be above 0; 1 keeps the channels of the architecture")
    narrowest = min(arch.stem_channels, *(channels for _, channels in arch.stages))
    if narrowest * width < 1:
        raise ConfigError(
            f"width {width} leaves less than 1 of the {narrowest} channels of a layer of {arch.name}; "
            f"use at least {1 / narrowest:.3g}"
        )
    if not 0 <= stochastic_depth < 1:
        raise ConfigError(f"stochastic_depth {stochastic_depth} must be at least 0 and below 1")
    return width, stochastic_depth


def scaled(channels: int, width: float) -> int:
    """Channels times width, rounded to the nearest multiple of 8 unless width is 1."""
    return channels if width == 1 else max(8, round(channels * width / 8) * 8)
