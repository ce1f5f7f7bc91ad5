"""The residual blocks.

A block receives its convolution, its norm and its activation; the trunk binds dtype and axis into the first two.
`norm_act` decides whether norm, addition and activation run as one fused operation.

Every block has three options. zero_init: the scale of the last norm starts at 0, so the block starts as its
shortcut (arXiv:1706.02677, section 5.1). squeeze_excitation: SqueezeExcitation on the branch. drop_rate: the share
of images whose branch is dropped in training, with the rng "dropout" (arXiv:1603.09382).

The default layers compute in float32 and return float32 for an input of any dtype. For bfloat16 bind the dtype:
Residual(64, conv=partial(Conv, dtype=jnp.bfloat16), norm=partial(BatchNorm, dtype=jnp.bfloat16)).
"""

from functools import partial

import jax
from flax import linen as nn
from jax import numpy as jnp

from resnet_jax.errors import ConfigError
from resnet_jax.models.layers import (
    Activation,
    BatchNorm,
    Conv,
    ModuleDef,
    Strides,
    TorchvisionConv,
    norm_act,
    relu,
    start_at_zero,
    stride_pair,
)
from resnet_jax.ops.plain import widened


def check_identity(block: str, x: jax.Array, num_channels: int, strides: Strides) -> None:
    """Raise ConfigError if the branch of the block has another shape than x."""
    if x.shape[-1] != num_channels or stride_pair(strides) != (1, 1):
        raise ConfigError(
            f"{block}: the shortcut is the input itself, so num_channels {num_channels} must equal the input's "
            f"{x.shape[-1]} channels and strides {strides} must be 1; or set use_1x1conv=True"
        )


class SqueezeExcitation(nn.Module):
    """Scale each channel by a weight that a small network computes from the means of all channels.

    x: (N, H, W, C) -> (N, H, W, C). The hidden layer has C / 16 channels, rounded to a multiple of 8
    as timm does, and at least 8.
    Source: arXiv:1709.01507, figure 3.
    """

    conv: ModuleDef = Conv

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        squeezed = max(8, (channels // 16 + 4) // 8 * 8)
        conv = partial(self.conv, kernel_size=(1, 1), use_bias=True)
        y = widened(x).mean((1, 2), keepdims=True)
        y = nn.relu(conv(squeezed, name="fc1")(y))
        return x * nn.sigmoid(conv(channels, name="fc2")(y))


def drop_branch(key: jax.Array, y: jax.Array, rate: float) -> jax.Array:
    """Set images of y to zero at the given rate and scale up the others, so that the mean stays. y: (N, ...)."""
    kept = jax.random.bernoulli(key, 1 - rate, (y.shape[0],) + (1,) * (y.ndim - 1))
    return jnp.where(kept, y / (1 - rate), 0).astype(y.dtype)


class Block(nn.Module, kw_only=True):
    """The options that every block has, and the end of the block, where the branch meets the shortcut."""

    act: Activation = relu
    zero_init: bool = False
    squeeze_excitation: bool = False
    drop_rate: float = 0.0

    def join(self, conv: ModuleDef, norm: ModuleDef, y: jax.Array, shortcut: jax.Array, train: bool, name: str):
        """act(branch + shortcut), where the branch is y after `norm`, the last norm of the block."""
        norm = start_at_zero(norm) if self.zero_init else norm
        if not self.squeeze_excitation and not (train and self.drop_rate):
            return norm_act(norm, self.act, y, train, name, residual=shortcut)
        return self.act(self.finish(conv, norm_act(norm, None, y, train, name), train) + shortcut)

    def finish(self, conv: ModuleDef, y: jax.Array, train: bool) -> jax.Array:
        """The branch y after squeeze-and-excitation and stochastic depth."""
        if self.squeeze_excitation:
            y = SqueezeExcitation(conv, name="se")(y)
        if train and self.drop_rate and not self.is_initializing():
            y = drop_branch(self.make_rng("dropout"), y, self.drop_rate)
        return y


class Residual(Block):
    """The residual block of the chapter: two 3x3 convolutions and a shortcut, act(g(x) + x).

    x: (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), num_channels).
    Without use_1x1conv the shortcut is x itself: C must equal num_channels and strides must be 1 (else ConfigError).
    Source: arXiv:1512.03385, figure 2; d2l.ai, section 8.6.
    """

    num_channels: int
    use_1x1conv: bool = False
    strides: Strides = 1
    conv: ModuleDef = Conv
    norm: ModuleDef = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if not self.use_1x1conv:
            check_identity("Residual", x, self.num_channels, self.strides)
        y = self.conv(self.num_channels, (3, 3), self.strides, padding=1, name="conv1")(x)
        y = norm_act(self.norm, self.act, y, train, "bn1")
        y = self.conv(self.num_channels, (3, 3), padding=1, name="conv2")(y)
        if self.use_1x1conv:  # the chapter has no norm on this shortcut; torchvision has one
            x = self.conv(self.num_channels, (1, 1), self.strides, name="conv3")(x)
        return self.join(self.conv, self.norm, y, x, train, "bn2")


class ResNeXtBlock(Block):
    """The ResNeXt block of the chapter: 1x1, grouped 3x3 and 1x1 convolutions and a shortcut, act(g(x) + x).

    x: (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), num_channels).
    The bottleneck has round(num_channels * bot_mul) channels. `groups` is the WIDTH of a group, not their number:
    ResNeXtBlock(32, 16, 1) has 2 groups of 16 channels. The chapter's code means the same, since it passes
    groups=bot_channels // groups to PyTorch; its text calls `groups` a number.
    ConfigError if the width does not divide the bottleneck, or if x cannot be the shortcut without use_1x1conv.
    Source: arXiv:1611.05431, figure 3(c); d2l.ai, section 8.6.5.
    """

    num_channels: int
    groups: int
    bot_mul: float
    use_1x1conv: bool = False
    strides: Strides = 1
    conv: ModuleDef = Conv
    norm: ModuleDef = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        bot_channels = round(self.num_channels * self.bot_mul)
        if self.groups < 1 or bot_channels < 1 or bot_channels % self.groups:
            raise ConfigError(
                f"ResNeXtBlock: groups {self.groups} is the width of a group and must divide the {bot_channels} "
                f"channels of the bottleneck (num_channels {self.num_channels} x bot_mul {self.bot_mul})"
            )
        if not self.use_1x1conv:
            check_identity("ResNeXtBlock", x, self.num_channels, self.strides)
        y = self.conv(bot_channels, (1, 1), name="conv1")(x)
        y = norm_act(self.norm, self.act, y, train, "bn1")
        num_groups = bot_channels // self.groups
        y = self.conv(bot_channels, (3, 3), self.strides, padding=1, groups=num_groups, name="conv2")(y)
        y = norm_act(self.norm, self.act, y, train, "bn2")
        y = self.conv(self.num_channels, (1, 1), name="conv3")(y)
        if self.use_1x1conv:
            x = self.conv(self.num_channels, (1, 1), self.strides, name="conv4")(x)
            x = norm_act(self.norm, None, x, train, "bn4")
        return self.join(self.conv, self.norm, y, x, train, "bn3")


class BasicBlock(Block):
    """torchvision's basic block: two 3x3 convolutions without bias and a shortcut, act(g(x) + x).

    x: (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), num_channels).
    With use_1x1conv the shortcut is a 1x1 convolution and a norm (option B of the paper). With pad_shortcut too, it
    takes every strides-th pixel and pads the channels with zeros, one half in front (option A).
    Without use_1x1conv, C must equal num_channels and strides must be 1 (else ConfigError).
    Source: arXiv:1512.03385, figure 2 and section 3.3; torchvision.models.resnet.BasicBlock.
    """

    num_channels: int
    use_1x1conv: bool = False
    strides: Strides = 1
    pad_shortcut: bool = False
    conv: ModuleDef = TorchvisionConv
    norm: ModuleDef = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if not self.use_1x1conv:
            check_identity("BasicBlock", x, self.num_channels, self.strides)
        y = self.conv(self.num_channels, (3, 3), self.strides, padding=1, name="conv1")(x)
        y = norm_act(self.norm, self.act, y, train, "bn1")
        y = self.conv(self.num_channels, (3, 3), padding=1, name="conv2")(y)
        if self.use_1x1conv and self.pad_shortcut:
            down, right = stride_pair(self.strides)
            x = pad_channels(x[:, ::down, ::right], self.num_channels)
        elif self.use_1x1conv:
            x = self.conv(self.num_channels, (1, 1), self.strides, name="shortcut_conv")(x)
            x = norm_act(self.norm, None, x, train, "shortcut_bn")
        return self.join(self.conv, self.norm, y, x, train, "bn2")


def pad_channels(x: jax.Array, num_channels: int) -> jax.Array:
    """Pad the channels of x with zeros on both sides. (N, H, W, C) -> (N, H, W, num_channels)."""
    new = num_channels - x.shape[-1]
    if new < 0:
        raise ConfigError(f"a shortcut cannot pad {x.shape[-1]} channels to {num_channels}; set pad_shortcut=False")
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))


class BottleneckBlock(Block):
    """torchvision's bottleneck: 1x1, grouped 3x3 and 1x1 convolutions without bias and a shortcut, act(g(x) + x).

    x: (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), num_channels).
    The bottleneck has round(num_channels * bot_mul) channels in `groups` groups. Here `groups` is the number of
    groups; in ResNeXtBlock it is their width. The 3x3 convolution has the stride ("v1.5"), not the first 1x1 as in
    the paper. ConfigError if groups does not divide the bottleneck, or if x cannot be the shortcut.
    Source: arXiv:1512.03385, figure 5; arXiv:1611.05431, figure 3(c); torchvision.models.resnet.Bottleneck.
    """

    num_channels: int
    groups: int = 1
    bot_mul: float = 0.25
    use_1x1conv: bool = False
    strides: Strides = 1
    conv: ModuleDef = TorchvisionConv
    norm: ModuleDef = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        bot_channels = round(self.num_channels * self.bot_mul)
        if self.groups < 1 or bot_channels < 1 or bot_channels % self.groups:
            raise ConfigError(
                f"BottleneckBlock: groups {self.groups} must divide the {bot_channels} channels of the bottleneck "
                f"(num_channels {self.num_channels} x bot_mul {self.bot_mul})"
            )
        if not self.use_1x1conv:
            check_identity("BottleneckBlock", x, self.num_channels, self.strides)
        y = self.conv(bot_channels, (1, 1), name="conv1")(x)
        y = norm_act(self.norm, self.act, y, train, "bn1")
        y = self.conv(bot_channels, (3, 3), self.strides, padding=1, groups=self.groups, name="conv2")(y)
        y = norm_act(self.norm, self.act, y, train, "bn2")
        y = self.conv(self.num_channels, (1, 1), name="conv3")(y)
        if self.use_1x1conv:
            x = self.conv(self.num_channels, (1, 1), self.strides, name="shortcut_conv")(x)
            x = norm_act(self.norm, None, x, train, "shortcut_bn")
        return self.join(self.conv, self.norm, y, x, train, "bn3")


class PreActBlock(Block):
    """The block of wide residual networks: norm and activation before each of two 3x3 convolutions, g(x) + x.

    x: (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), num_channels).
    With use_1x1conv the shortcut is a 1x1 convolution of the normalised input, without a norm of its own. Without
    it, C must equal num_channels and strides must be 1 (else ConfigError). A norm must follow the last block.
    zero_init sets the last kernel to 0, since a scale of 0 before a ReLU never gets a gradient.
    Source: arXiv:1603.05027, figure 4(e); arXiv:1605.07146, figure 1(b).
    """

    num_channels: int
    use_1x1conv: bool = False
    strides: Strides = 1
    conv: ModuleDef = TorchvisionConv
    norm: ModuleDef = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if not self.use_1x1conv:
            check_identity("PreActBlock", x, self.num_channels, self.strides)
        last = partial(self.conv, kernel_init=nn.initializers.zeros) if self.zero_init else self.conv
        y = norm_act(self.norm, self.act, x, train, "bn1")
        if self.use_1x1conv:
            x = self.conv(self.num_channels, (1, 1), self.strides, name="shortcut_conv")(y)
        y = self.conv(self.num_channels, (3, 3), self.strides, padding=1, name="conv1")(y)
        y = norm_act(self.norm, self.act, y, train, "bn2")
        y = last(self.num_channels, (3, 3), padding=1, name="conv2")(y)
        return self.finish(self.conv, y, train) + x
