"""Networks that grow wider: new channels are copies, and what took in the old channel shares its weight among them.

Net2WiderNet, arXiv:1511.05641, section 2.2. There every copy gets the same share; here the shares are drawn at random
and sum to 1, so that the copies get gradients of their own and part.
"""

import itertools
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from resnet_jax.errors import ConfigError
from resnet_jax.models.growth import (
    COLLECTIONS,
    Variables,
    as_arch,
    changed,
    check_stage_number,
    check_variables,
    projects,
    shapes_like,
)
from resnet_jax.models.registry import Arch, scaled
from resnet_jax.models.summary import LeafPath

SHARES = (0.5, 1.5)  # the range that they are drawn from, before they are made to sum to 1
SHORTCUTS = {  # the layers of one that projects
    "residual": ("conv3",),
    "resnext": ("conv4", "bn4"),
    "basic": ("shortcut_conv", "shortcut_bn"),
    "bottleneck": ("shortcut_conv", "shortcut_bn"),
    "preact": ("shortcut_conv",),
}


def widen(
    arch: str | Arch, variables: Variables, stage: int, channels: int, *, key: jax.Array, width: float = 1.0
) -> tuple[Arch, dict[str, Any]]:
    """The network with more channels in a stage, and its variables: its logits are the same up to rounding.

    channels: what the stage puts out then, in the Arch's terms: before width, which is create_model's for both
    networks. The inside of the stage's blocks is widened too, and the stem where the first stage takes its channels
    as they are. A fixed width of groups makes for more groups, a fixed number of them for wider ones. key draws which
    channels are copied, and the shares. Leaves that do not change are passed on, not copied.
    ConfigError where the architecture cannot be so wide, or where its shortcuts pad (option A): where a channel goes
    hangs on the number of channels there.

        arch, variables = resnet_jax.widen("resnet50", variables, stage=4, channels=3072, key=jax.random.key(0))
        model = resnet_jax.create_model(arch)  # resnet50-3-4-6-3-w256-512-1024-3072
    """
    arch = as_arch(arch)
    num_blocks = check_stage_number(arch, stage)
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
    """The Arch with so many channels in a stage; ConfigError where the same function cannot be had of it."""
    stages = list(arch.stages)
    num_blocks, before = stages[stage - 1]
    if scaled(channels, width) <= scaled(before, width):
        at_least = next(more for more in itertools.count(before + 1) if scaled(more, width) > scaled(before, width))
        raise ConfigError(
            f"channels {channels}: stage {stage} of {arch.name} has {before}; give at least {at_least} at width {width}"
        )
    if arch.pad_shortcut and (len(stages) > 1 or projects(variables, 1)):
        raise ConfigError(
            f"{arch.name} cannot be widened: its shortcuts pad the channels, so that which one goes where hangs on "
            "their number; take an architecture whose shortcuts project, or insert blocks"
        )
    stages[stage - 1] = (num_blocks, channels)
    if not projects(variables, stage):
        if arch.stem_channels != before:
            raise ConfigError(
                f"stage 1 of {arch.name} has the stem's channels at width {width} alone, so that the network widened "
                "would be one of no name; widen another stage"
            )
        return changed(arch, stages=tuple(stages), stem_channels=channels)
    if stage == 1 and scaled(channels, width) == scaled(arch.stem_channels, width):
        raise ConfigError(
            f"channels {channels}: the stem has as many, so that the first block of stage 1 of {arch.name} would no "
            "longer project its input; give another number"
        )
    return changed(arch, stages=tuple(stages))


class _Net:
    """The variables of a network, flat, while some of its channels become more.

    A source is (new,) int: of which old channel each new one is a copy; the old ones come first, as they were.
    """

    def __init__(self, arch: Arch, variables: Variables, rng: np.random.Generator):
        self.arch, self.rng = arch, rng
        self.flat: dict[LeafPath, Any] = traverse_util.flatten_dict({name: variables[name] for name in COLLECTIONS})

    def variables(self) -> dict[str, Any]:
        return traverse_util.unflatten_dict(self.flat)

    def copies(self, old: int, new: int) -> np.ndarray:
        """A source."""
        return np.concatenate([np.arange(old), self.rng.integers(0, old, new - old)])

    def put_out(self, layer: LeafPath, source: np.ndarray) -> None:
        """Make a layer that puts the old channels out put out the new; nothing if there is no such layer."""
        for path in self._leaves(layer):
            self.flat[path] = np.asarray(self.flat[path])[..., source]

    def split(self, layer: LeafPath, source: np.ndarray) -> None:
        """Make a layer that takes the old channels in take in the new; nothing if there is no such layer."""
        for path in self._leaves(layer):
            if path[-1] == "kernel":
                share = self.rng.uniform(*SHARES, len(source))
                share /= np.bincount(source, share)[source]
                kernel = np.asarray(self.flat[path])[..., source, :]
                self.flat[path] = (kernel * share[:, None]).astype(kernel.dtype)

    def take_in(self, block: LeafPath, stream: np.ndarray) -> None:
        """Make a block that takes the old stream in take in the new."""
        if self.arch.block == "preact":
            self.put_out((*block, "bn1"), stream)
        self.split((*block, "conv1"), stream)
        for shortcut in SHORTCUTS[self.arch.block]:
            self.split((*block, shortcut), stream)

    def widen_block(self, block: LeafPath, shapes: dict[str, Any], stream: np.ndarray) -> None:
        """Make a block put out the new stream; what is inside it becomes as wide as in those shapes of such a block."""
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
        """Squeeze-and-excitation of the new stream, squeezed to so many features."""
        squeezed = self.copies(self._features((*layer, "fc1")), features)
        self.split((*layer, "fc1"), stream)
        self.put_out((*layer, "fc1"), squeezed)
        self.split((*layer, "fc2"), squeezed)
        self.put_out((*layer, "fc2"), stream)

    def _inside(self, old: int, new: int) -> tuple[np.ndarray, np.ndarray | None]:
        """A source for the inside of a block, and that of each group; None where the groups themselves are copied."""
        if self.arch.block == "resnext":  # a copy of a whole group takes in copies alone, and all of its weight
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
