"""The trunk: stem -> stages of blocks -> head."""

import itertools
from functools import partial

import jax
from flax import linen as nn
from jax import numpy as jnp

from resnet_jax import ops
from resnet_jax.errors import ConfigError, unknown
from resnet_jax.models.blocks import Residual
from resnet_jax.models.layers import BatchNorm, Conv, Dense, Dtype, ModuleDef

STEMS = ("standard", "small")
STEM_CHANNELS = 64


class Stem(nn.Module):
    """What comes before the stages: "standard" 7x7 convolution and max-pool, each of stride 2; "small" one 3x3.

    x: (N, H, W, C) -> (N, ceil(H / 4), ceil(W / 4), features), or (N, H, W, features) for "small".
    normalise: whether norm and ReLU follow the convolution, as they do unless the blocks begin with them.
    """

    form: str
    conv: ModuleDef
    norm: ModuleDef
    features: int = STEM_CHANNELS
    normalise: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        small = self.form == "small"
        kernel, strides, padding = ((3, 3), 1, 1) if small else ((7, 7), 2, 3)
        x = self.conv(self.features, kernel, strides, padding=padding, name="conv")(x)
        if self.normalise:
            return self.norm(use_running_average=not train, relu=True, pool=not small, name="bn")(x)
        return x if small else ops.max_pool(x)


class Stage(nn.Module):
    """Blocks at one size; the first of them halves it, unless the stage is the first.

    x: (N, H, W, C) -> (N, H, W, num_channels) if first, else (N, ceil(H / 2), ceil(W / 2), num_channels).
    A block that halves or changes the channels projects the shortcut. drop_rates: stochastic depth of each block.
    remat: keep only what goes into a block for the backward pass, which computes the rest once more.
    """

    num_blocks: int
    num_channels: int
    block: ModuleDef
    first: bool
    drop_rates: tuple[float, ...] = ()
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def call(block: nn.Module, x: jax.Array) -> jax.Array:
            return block(x, train)  # pyright: ignore[reportCallIssue]

        for i in range(self.num_blocks):
            halve = i == 0 and not self.first
            project = halve or x.shape[-1] != self.num_channels
            options = {"drop_rate": self.drop_rates[i]} if self.drop_rates else {}
            block = self.block(
                self.num_channels, use_1x1conv=project, strides=2 if halve else 1, name=f"block{i + 1}", **options
            )
            x = nn.remat(call)(block, x) if self.remat else call(block, x)
        return x


class ResNet(nn.Module):
    """The seed's trunk: a stem, stages of (number of blocks, channels), global average pooling, a dense head.

    x: (N, H, W, C), any C -> logits (N, num_classes), float32. ConfigError for an image that is too small.
    block: Residual, or another of that signature. dtype: that of the activations; parameters and batch statistics
    stay float32. axis_name: the pmap axis over which batch statistics are taken in training; None, those of the
    device's own share. conv, dense: the layers, with their initialisation. preact: the blocks begin with a norm, so
    the stem has none and one follows the last stage. zero_init, squeeze_excitation: every block's. stochastic_depth:
    the last block's drop_rate, to which that of the others rises linearly. remat: Stage's.
    Source: arXiv:1512.03385, table 1; d2l.ai, section 8.6.
    """

    arch: tuple[tuple[int, int], ...] = ((2, 64), (2, 128), (2, 256), (2, 512))
    num_classes: int = 10
    block: ModuleDef = Residual
    stem: str = "standard"
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    stem_channels: int = STEM_CHANNELS
    conv: ModuleDef = Conv
    dense: ModuleDef = Dense
    preact: bool = False
    zero_init: bool = False
    squeeze_excitation: bool = False
    stochastic_depth: float = 0.0
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.stem not in STEMS:
            raise ConfigError(unknown("stem", self.stem, STEMS))
        check_image_size(x.shape[1:3], self.stem, len(self.arch))
        # the one place where another convolution or norm is put in
        conv = partial(self.conv, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype, axis_name=self.axis_name)
        options = {"zero_init": self.zero_init, "squeeze_excitation": self.squeeze_excitation}
        # only those that are on, so that a block of one's own need not have them
        block = partial(self.block, conv=conv, norm=norm, **{name: on for name, on in options.items() if on})
        x = Stem(self.stem, conv, norm, self.stem_channels, not self.preact, name="stem")(x, train)
        rates = self._drop_rates()
        for i, (num_blocks, num_channels) in enumerate(self.arch):
            stage = Stage(num_blocks, num_channels, block, i == 0, rates[i], self.remat, name=f"stage{i + 1}")
            x = stage(x, train)
        if self.preact:
            x = norm(use_running_average=not train, relu=True, name="bn")(x)
        x = x.astype(jnp.float32).mean((1, 2))
        return self.dense(self.num_classes, name="head")(x)

    def _drop_rates(self) -> list[tuple[float, ...]]:
        """Of each block of each stage: l / L of stochastic_depth for block l of L (arXiv:1603.09382, equation 4)."""
        if not self.stochastic_depth:
            return [()] * len(self.arch)
        depth = sum(num_blocks for num_blocks, _ in self.arch)
        rates = iter(self.stochastic_depth * (i + 1) / depth for i in range(depth))
        return [tuple(itertools.islice(rates, num_blocks)) for num_blocks, _ in self.arch]


ResNet18 = partial(ResNet, arch=((2, 64), (2, 128), (2, 256), (2, 512)))


def min_image_size(stem: str, num_stages: int) -> int:
    """The smallest height or width, in pixels, of which no stage has to halve a single pixel."""
    halvings = num_stages - 1 + (2 if stem == "standard" else 0)
    return 2 ** (halvings - 1) + 1 if halvings else 1


def check_image_size(size: tuple[int, ...], stem: str, num_stages: int) -> None:
    """Raise ConfigError where an image of (height, width) pixels is too small for the trunk."""
    least = min_image_size(stem, num_stages)
    if min(size) < least:
        hint = ', or stem "small"' if stem == "standard" else ""
        raise ConfigError(
            f"image size {'x'.join(map(str, size))} is too small: a stage would halve a single pixel; "
            f"use at least {least}x{least}{hint}"
        )
