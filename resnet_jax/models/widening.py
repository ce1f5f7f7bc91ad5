"""Networks that grow wider: new channels are copies, and the layers after them split the weights among the copies.

This is Net2WiderNet, arXiv:1511.05641, section 2.2. There every copy gets an equal share of the weight. Here the shares
are random and sum to 1, so the copies receive different gradients and become different.
"""

import itertools
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from resnet_jax.arguments import real, whole
from resnet_jax.errors import ConfigError
from resnet_jax.models.growth import (
    COLLECTIONS,
    Variables,
    changed,
    check_stage_number,
    check_variables,
    projects,
    shapes_like,
)
from resnet_jax.models.registry import Arch, as_arch, scaled
from resnet_jax.models.summary import LeafPath

SHARES = (0.5, 1.5)  # the range of the random shares, before they are normalised to sum to 1
SHORTCUTS = {  # the layers of a projection shortcut
    "residual": ("conv3",),
    "resnext": ("conv4", "bn4"),
    "basic": ("shortcut_conv", "shortcut_bn"),
    "bottleneck": ("shortcut_conv", "shortcut_bn"),
    "preact": ("shortcut_conv",),
}


def widen(
    arch: str | Arch, variables: Variables, stage: int, channels: int, *, key: jax.Array, width: float = 1.0
) -> tuple[Arch, dict[str, Any]]:
    """Give a stage more channels. The logits stay the same up to rounding.

    channels: the new number of output channels of the stage, as in the Arch, before width multiplies it. width: the
    argument of create_model for both networks. The inner channels of the stage's blocks grow in proportion. So does
    the stem, if the first stage has no projection. ResNeXt blocks get more groups, bottlenecks wider groups.
    key draws the channels to copy and the shares. Arrays that do not change are returned themselves, not copied.
    Returns the new Arch and its variables. ConfigError if the architecture cannot have so many channels, if its
    shortcuts pad channels (option A), or if the network has no batch norm or no head.

        arch, variables = resnet_jax.widen("resnet50", variables, stage=4, channels=3072, key=jax.random.key(0))
        model = resnet_jax.create_model(arch)  # resnet50-3-4-6-3-w256-512-1024-3072
    """
    arch = as_arch(arch)
    num_blocks, channels, width = check_stage_number(arch, stage), whole("channels", channels), real("width", width)
    check_variables(arch, variables, width)
    wide = _wider(arch, variables, stage, channels, width)
    shapes = shapes_like(wide, variables, width)["params"][f"stage{stage}"]["block1"]
    net = _Net(arch, variables, np.random.default_rng(np.asarray(jax.random.key_data(key))))
    stream = net.copies(scaled(arch.stages[stage - 1][1], width), scaled(channels, width))
    for i in range(1, num_blocks + 1):
        net.widen_block((f"stage{stage}", f"block{i}"), shapes, stream)
        if i > 1 or not projects(variables, stage):
            net.take_in((f"stage{stage}", f"block{i}"), stream)
    if not projects(variables, stage):
        net.put_out(("stem", "conv"), stream)
        net.put_out(("stem", "bn"), stream)
    if stage < len(arch.stages):
        net.take_in((f"stage{stage + 1}", "block1"), stream)
    else:
        net.put_out(("bn",), stream)
        net.split(("head",), stream)
    return wide, net.variables()


def _wider(arch: Arch, variables: Variables, stage: int, channels: int, width: float) -> Arch:
    """The Arch with this number of channels in a stage; ConfigError if it cannot compute the same function."""
    stages = list(arch.stages)
    num_blocks, before = stages[stage - 1]
    if scaled(channels, width) <= scaled(before, width):
        at_least = next(more for more in itertools.count(before + 1) if scaled(more, width) > scaled(before, width))
        raise ConfigError(
            f"channels {channels}: stage {stage} of {arch.name} has {before}; use at least {at_least} at width {width}"
        )
    if arch.pad_shortcut and (len(stages) > 1 or projects(variables, 1)):
        raise ConfigError(
            f"{arch.name} cannot be widened: its shortcuts pad channels, so their positions depend on the width; "
            "use an architecture with projection shortcuts, or insert blocks instead"
        )
    stages[stage - 1] = (num_blocks, channels)
    if not projects(variables, stage):
        if arch.stem_channels != before:
            raise ConfigError(
                f"stage 1 of {arch.name} has the stem's channels at width {width} alone, so no Arch describes the "
                "wider network; widen another stage"
            )
        return changed(arch, stages=tuple(stages), stem_channels=channels)
    if stage == 1 and scaled(channels, width) == scaled(arch.stem_channels, width):
        raise ConfigError(
            f"channels {channels}: the stem has equally many, so the first block of stage 1 of {arch.name} would lose "
            "its projection; use another number"
        )
    return changed(arch, stages=tuple(stages))


class _Net:
    """The flat variables of a network while it is widened.

    A source is an int array (new,): the old channel that each new channel copies. The old channels come first.
    """

    def __init__(self, arch: Arch, variables: Variables, rng: np.random.Generator):
        self.arch, self.rng = arch, rng
        self.flat: dict[LeafPath, Any] = traverse_util.flatten_dict({name: variables[name] for name in COLLECTIONS})

    def variables(self) -> dict[str, Any]:
        return traverse_util.unflatten_dict(self.flat)

    def copies(self, old: int, new: int) -> np.ndarray:
        """A source: all old channels, then randomly chosen copies."""
        return np.concatenate([np.arange(old), self.rng.integers(0, old, new - old)])

    def put_out(self, layer: LeafPath, source: np.ndarray) -> None:
        """Give a layer the new output channels. Does nothing if there is no such layer."""
        for path in self._leaves(layer):
            self.flat[path] = np.asarray(self.flat[path])[..., source]

    def split(self, layer: LeafPath, source: np.ndarray) -> None:
        """Give a layer the new input channels, with split weights. Does nothing if there is no such layer."""
        for path in self._leaves(layer):
            if path[-1] == "kernel":
                share = self.rng.uniform(*SHARES, len(source))
                share /= np.bincount(source, share)[source]
                kernel = np.asarray(self.flat[path])[..., source, :]
                self.flat[path] = (kernel * share[:, None]).astype(kernel.dtype)

    def take_in(self, block: LeafPath, stream: np.ndarray) -> None:
        """Give a block the new input channels."""
        if self.arch.block == "preact":
            self.put_out((*block, "bn1"), stream)
        self.split((*block, "conv1"), stream)
        for shortcut in SHORTCUTS[self.arch.block]:
            self.split((*block, shortcut), stream)

    def widen_block(self, block: LeafPath, shapes: dict[str, Any], stream: np.ndarray) -> None:
        """Give a block the new output channels, and the inner channels of a block with these shapes."""
        old, new = self._features((*block, "conv1")), shapes["conv1"]["kernel"].shape[-1]
        inside, within = self._inside(old, new)
        self.put_out((*block, "conv1"), inside)
        self.put_out((*block, "bn2" if self.arch.block == "preact" else "bn1"), inside)
        last = "2"
        if self.arch.block in ("resnext", "bottleneck"):
            last = "3"
            if within is not None:
                self.split((*block, "conv2"), within)
                inside, _ = self._inside(old, new)
            self.put_out((*block, "conv2"), inside)
            self.put_out((*block, "bn2"), inside)
        self.split((*block, f"conv{last}"), inside)
        self.put_out((*block, f"conv{last}"), stream)
        if self.arch.block != "preact":
            self.put_out((*block, f"bn{last}"), stream)
        for shortcut in SHORTCUTS[self.arch.block]:
            self.put_out((*block, shortcut), stream)
        if "se" in shapes:
            self._widen_squeeze((*block, "se"), shapes["se"]["fc1"]["kernel"].shape[-1], stream)

    def _widen_squeeze(self, layer: LeafPath, features: int, stream: np.ndarray) -> None:
        """Widen squeeze-and-excitation to the new output channels, with this number of hidden features."""
        squeezed = self.copies(self._features((*layer, "fc1")), features)
        self.split((*layer, "fc1"), stream)
        self.put_out((*layer, "fc1"), squeezed)
        self.split((*layer, "fc2"), squeezed)
        self.put_out((*layer, "fc2"), stream)

    def _inside(self, old: int, new: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The source of a block's inner channels, and that within each group (None if whole groups are copied)."""
        if self.arch.block == "resnext":  # A copied group reads only copied channels, so its weights are not split.
            size = self.arch.group_width
            groups = self.copies(old // size, new // size)
            return (groups[:, None] * size + np.arange(size)).reshape(-1), None
        groups, size = self.arch.groups, old // self.arch.groups
        within = self.copies(size, new // groups)
        return (np.arange(groups)[:, None] * size + within).reshape(-1), within

    def _leaves(self, layer: LeafPath) -> list[LeafPath]:
        return [path for path in self.flat if path[1:-1] == layer]

    def _features(self, layer: LeafPath) -> int:
        return np.shape(self.flat["params", *layer, "kernel"])[-1]
