"""The trunk: stem -> stages of blocks -> head."""

from functools import partial

import jax
from flax import linen as nn
from jax import numpy as jnp

from resnet_jax.errors import ConfigError, unknown
from resnet_jax.models.blocks import Residual
from resnet_jax.models.layers import BatchNorm, Conv, Dense, Dtype, ModuleDef

STEMS = ("standard", "small")
STEM_CHANNELS = 64


class Stem(nn.Module):
    """What comes before the stages: "standard" 7x7 convolution and max-pool, each of stride 2; "small" one 3x3.

    x: (N, H, W, C) -> (N, ceil(H / 4), ceil(W / 4), 64), or (N, H, W, 64) for "small".
    """

    form: str
    conv: ModuleDef
    norm: ModuleDef

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        small = self.form == "small"
        kernel, strides, padding = ((3, 3), 1, 1) if small else ((7, 7), 2, 3)
        x = self.conv(STEM_CHANNELS, kernel, strides, padding=padding, name="conv")(x)
        return self.norm(use_running_average=not train, relu=True, pool=not small, name="bn")(x)


class Stage(nn.Module):
    """Blocks at one size; the first of them halves it and projects the shortcut, unless the stage is the first.

    x: (N, H, W, C) -> (N, H, W, num_channels) if first, else (N, ceil(H / 2), ceil(W / 2), num_channels).
    """

    num_blocks: int
    num_channels: int
    block: ModuleDef
    first: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(self.num_blocks):
            halve = i == 0 and not self.first
            block = self.block(self.num_channels, use_1x1conv=halve, strides=2 if halve else 1, name=f"block{i + 1}")
            x = block(x, train)
        return x


class ResNet(nn.Module):
    """The seed's trunk: a stem, stages of (number of blocks, channels), global average pooling, a dense head.

    x: (N, H, W, C), any C -> logits (N, num_classes), float32. ConfigError for an image that is too small.
    block: Residual, or another of that signature. dtype: that of the activations; parameters and batch statistics
    stay float32. axis_name: the pmap axis over which batch statistics are taken in training; None, those of the
    device's own share.
    Source: arXiv:1512.03385, table 1; d2l.ai, section 8.6.
    """

    arch: tuple[tuple[int, int], ...] = ((2, 64), (2, 128), (2, 256), (2, 512))
    num_classes: int = 10
    block: ModuleDef = Residual
    stem: str = "standard"
    dtype: Dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.stem not in STEMS:
            raise ConfigError(unknown("stem", self.stem, STEMS))
        check_image_size(x.shape[1:3], self.stem, len(self.arch))
        # the one place where another convolution or norm is put in
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype, axis_name=self.axis_name)
        block = partial(self.block, conv=conv, norm=norm)
        x = Stem(self.stem, conv, norm, name="stem")(x, train)
        for i, (num_blocks, num_channels) in enumerate(self.arch):
            x = Stage(num_blocks, num_channels, block, first=i == 0, name=f"stage{i + 1}")(x, train)
        x = x.astype(jnp.float32).mean((1, 2))
        return Dense(self.num_classes, name="head")(x)


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
