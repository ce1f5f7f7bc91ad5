"""The trunk: stem -> stages of blocks -> head."""

import itertools
from functools import partial
from typing import Any

import jax
from flax import linen as nn
from jax import numpy as jnp

from resnet_jax import ops
from resnet_jax.errors import ConfigError, unknown
from resnet_jax.models.blocks import Residual
from resnet_jax.models.layers import Activation, BatchNorm, Conv, Dense, Dtype, ModuleDef, bind_trunk, norm_act, relu
from resnet_jax.ops.plain import widened

STEMS = ("standard", "small")
STEM_CHANNELS = 64


class Stem(nn.Module):
    """The layers before the stages. "standard": a 7x7 convolution and a max-pool, each of stride 2. "small": one 3x3.

    x: (N, H, W, C) -> (N, ceil(H / 4), ceil(W / 4), features), or (N, H, W, features) for "small".
    normalise: add a norm and the activation after the convolution. Pre-activation blocks start with their own.
    """

    form: str
    conv: ModuleDef
    norm: ModuleDef
    features: int = STEM_CHANNELS
    normalise: bool = True
    act: Activation = relu

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        small = self.form == "small"
        kernel, strides, padding = ((3, 3), 1, 1) if small else ((7, 7), 2, 3)
        x = self.conv(self.features, kernel, strides, padding=padding, name="conv")(x)
        if self.normalise:
            return norm_act(self.norm, self.act, x, train, "bn", pool=not small)
        return x if small else ops.max_pool(x)


class Stage(nn.Module):
    """Blocks at one image size. The first block halves it, except in the first stage.

    x: (N, H, W, C) -> (N, H, W, num_channels) if first, else (N, ceil(H / 2), ceil(W / 2), num_channels).
    A block that halves the size or changes the channels projects its shortcut. drop_rates: each block's drop_rate.
    remat: store only the inputs of the blocks; the backward pass computes the other activations again.
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
    """The trunk of the chapter: a stem, stages of (number of blocks, channels), global average pooling, a dense head.

    x: (N, H, W, C), any C -> logits (N, num_classes), float32. ConfigError for an image that is too small.
    num_classes: 0 removes the head, so that the model returns the pooled features (N, C), float32.
    block: Residual, or another block with its arguments. conv, dense: the layers, with their initialisation.
    norm, act: BatchNorm and ReLU, or any Flax norm or partial of one, such as partial(nn.GroupNorm, num_groups=8),
    and any function of an array, such as nn.gelu. BatchNorm with ReLU is the fastest pair, as it is fused.
    dtype: of the activations; parameters and statistics stay float32. It is bound into conv and norm.
    axis_name: the axis of pmap or shard_map over which batch norm computes its statistics in training; None: each
    device uses the statistics of its own images.
    preact: the blocks start with a norm, so the stem has none and one follows the last stage.
    zero_init, squeeze_excitation: options of every block. stochastic_depth: the drop_rate of the last block; the
    rate rises linearly from block to block. remat: see Stage.
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
    norm: ModuleDef = BatchNorm
    act: Activation = relu

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.stem not in STEMS:
            raise ConfigError(unknown("stem", self.stem, STEMS))
        check_image_size(x.shape[1:3], self.stem, len(self.arch))
        conv = partial(self.conv, dtype=self.dtype)
        norm = bind_trunk(self.norm, self.dtype, self.axis_name)
        x = Stem(self.stem, conv, norm, self.stem_channels, not self.preact, self.act, name="stem")(x, train)
        block = partial(self.block, conv=conv, norm=norm, **self._block_options())
        rates = self._drop_rates()
        for i, (num_blocks, num_channels) in enumerate(self.arch):
            stage = Stage(num_blocks, num_channels, block, i == 0, rates[i], self.remat, name=f"stage{i + 1}")
            x = stage(x, train)
        if self.preact:
            x = norm_act(norm, self.act, x, train, "bn")
        x = widened(x).mean((1, 2))
        return x if self.num_classes == 0 else self.dense(self.num_classes, name="head")(x)

    def _block_options(self) -> dict[str, Any]:
        """The options that differ from the defaults, so that a user's own block need not have them all."""
        options: dict[str, Any] = {"zero_init": self.zero_init, "squeeze_excitation": self.squeeze_excitation}
        options = {name: value for name, value in options.items() if value}
        return options if self.act is relu else options | {"act": self.act}

    def _drop_rates(self) -> list[tuple[float, ...]]:
        """The drop_rates of each stage: stochastic_depth * l / L for block l of L (arXiv:1603.09382, equation 4)."""
        if not self.stochastic_depth:
            return [()] * len(self.arch)
        depth = sum(num_blocks for num_blocks, _ in self.arch)
        rates = iter(self.stochastic_depth * (i + 1) / depth for i in range(depth))
        return [tuple(itertools.islice(rates, num_blocks)) for num_blocks, _ in self.arch]


ResNet18 = partial(ResNet, arch=((2, 64), (2, 128), (2, 256), (2, 512)))


def min_image_size(stem: str, num_stages: int) -> int:
    """The smallest height or width for which every halving starts from at least 2 pixels."""
    halvings = num_stages - 1 + (2 if stem == "standard" else 0)
    return 2 ** (halvings - 1) + 1 if halvings else 1


def check_image_size(size: tuple[int, ...], stem: str, num_stages: int) -> None:
    """Raise ConfigError if an image of (height, width) pixels is too small for the trunk."""
    least = min_image_size(stem, num_stages)
    if min(size) < least:
        hint = ', or stem "small"' if stem == "standard" else ""
        raise ConfigError(
            f"image size {'x'.join(map(str, size))} is too small: a stage would halve a single pixel; "
            f"use at least {least}x{least}{hint}"
        )
