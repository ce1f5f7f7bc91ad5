"""The residual blocks.

A block is handed its convolution and its norm: the trunk binds dtype, momentum and axis into them, the block
adds what is its own. A norm takes `relu=True` and `residual=x`, since what follows it is done in the same pass.

Every block has three options. zero_init: the last gamma starts at 0, so that the block starts as its shortcut
(arXiv:1706.02677, section 5.1). squeeze_excitation: SqueezeExcitation on the branch. drop_rate: in training, the
share of images for which the branch is left out; the rng is "dropout" (arXiv:1603.09382).
"""

from functools import partial

import jax
from flax import linen as nn
from jax import numpy as jnp

from resnet_jax.errors import ConfigError
from resnet_jax.models.layers import BatchNorm, Conv, ModuleDef, TorchvisionConv


def check_identity(block: str, x: jax.Array, num_channels: int, strides: int) -> None:
    """Raise ConfigError where x itself cannot be added to what the block makes of it."""
    if x.shape[-1] != num_channels or strides != 1:
        raise ConfigError(
            f"{block}: the shortcut is the input itself, so num_channels {num_channels} must equal the input's "
            f"{x.shape[-1]} channels and strides {strides} must be 1; or set use_1x1conv=True"
        )


class SqueezeExcitation(nn.Module):
    """Scale every channel by what a small network makes of all channels' means.

    x: (N, H, W, C) -> (N, H, W, C). C is squeezed to C / 16, rounded to a multiple of 8 as timm does, at least 8.
    Source: arXiv:1709.01507, figure 3.
    """

    conv: ModuleDef = Conv

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        squeezed = max(8, (channels // 16 + 4) // 8 * 8)
        conv = partial(self.conv, kernel_size=(1, 1), use_bias=True)
        y = x.astype(jnp.float32).mean((1, 2), keepdims=True)
        y = nn.relu(conv(squeezed, name="fc1")(y))
        return x * nn.sigmoid(conv(channels, name="fc2")(y))


def drop_branch(key: jax.Array, y: jax.Array, rate: float) -> jax.Array:
    """y with each image of it zero at the given rate, the others scaled up so that the mean stays. y: (N, ...)."""
    kept = jax.random.bernoulli(key, 1 - rate, (y.shape[0],) + (1,) * (y.ndim - 1))
    return jnp.where(kept, y / (1 - rate), 0).astype(y.dtype)


class Block(nn.Module, kw_only=True):
    """The options that every block has, and what they do where the branch meets the shortcut."""

    zero_init: bool = False
    squeeze_excitation: bool = False
    drop_rate: float = 0.0

    def join(self, conv: ModuleDef, norm: ModuleDef, y: jax.Array, shortcut: jax.Array, train: bool) -> jax.Array:
        """ReLU(branch + shortcut), the branch being y after `norm`, the block's last."""
        if self.zero_init:
            norm = partial(norm, scale_init=nn.initializers.zeros)
        if not self.squeeze_excitation and not (train and self.drop_rate):
            return norm(relu=True)(y, residual=shortcut)
        return nn.relu(self.finish(conv, norm(relu=False)(y), train) + shortcut)

    def finish(self, conv: ModuleDef, y: jax.Array, train: bool) -> jax.Array:
        """The branch y after squeeze-and-excitation and stochastic depth."""
        if self.squeeze_excitation:
            y = SqueezeExcitation(conv, name="se")(y)
        if train and self.drop_rate and not self.is_initializing():
            y = drop_branch(self.make_rng("dropout"), y, self.drop_rate)
        return y


class Residual(Block):
    """The seed's residual block: two 3x3 convolutions and a shortcut, ReLU(g(x) + x).

    x: (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), num_channels).
    Without use_1x1conv the shortcut is x itself, so C must equal num_channels and strides be 1 (else ConfigError).
    Source: arXiv:1512.03385, figure 2; d2l.ai, section 8.6.
    """

    num_channels: int
    use_1x1conv: bool = False
    strides: int = 1
    conv: ModuleDef = Conv
    norm: ModuleDef = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(self.norm, use_running_average=not train)
        if not self.use_1x1conv:
            check_identity("Residual", x, self.num_channels, self.strides)
        y = self.conv(self.num_channels, (3, 3), self.strides, padding=1, name="conv1")(x)
        y = norm(name="bn1", relu=True)(y)
        y = self.conv(self.num_channels, (3, 3), padding=1, name="conv2")(y)
        if self.use_1x1conv:  # no batch norm here: the seed has none, torchvision does
            x = self.conv(self.num_channels, (1, 1), self.strides, name="conv3")(x)
        return self.join(self.conv, partial(norm, name="bn2"), y, x, train)


class ResNeXtBlock(Block):
    """The seed's ResNeXt block: 1x1, grouped 3x3 and 1x1 convolutions and a shortcut, ReLU(g(x) + x).

    x: (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), num_channels).
    The bottleneck has round(num_channels * bot_mul) channels. `groups` is the WIDTH of a group, as the seed's code
    has it (it passes groups=bot_channels // groups to PyTorch), although its prose speaks of g groups:
    ResNeXtBlock(32, 16, 1) convolves 2 groups of 16 channels. ConfigError if that width does not divide the
    bottleneck, or if C or strides do not fit a shortcut without use_1x1conv.
    Source: arXiv:1611.05431, figure 3(c); d2l.ai, section 8.6.5.
    """

    num_channels: int
    groups: int
    bot_mul: float
    use_1x1conv: bool = False
    strides: int = 1
    conv: ModuleDef = Conv
    norm: ModuleDef = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(self.norm, use_running_average=not train)
        bot_channels = round(self.num_channels * self.bot_mul)
        if self.groups < 1 or bot_channels < 1 or bot_channels % self.groups:
            raise ConfigError(
                f"ResNeXtBlock: groups {self.groups} is the width of a group and must divide the {bot_channels} "
                f"channels of the bottleneck (num_channels {self.num_channels} x bot_mul {self.bot_mul})"
            )
        if not self.use_1x1conv:
            check_identity("ResNeXtBlock", x, self.num_channels, self.strides)
        y = self.conv(bot_channels, (1, 1), name="conv1")(x)
        y = norm(name="bn1", relu=True)(y)
        num_groups = bot_channels // self.groups
        y = self.conv(bot_channels, (3, 3), self.strides, padding=1, groups=num_groups, name="conv2")(y)
        y = norm(name="bn2", relu=True)(y)
        y = self.conv(self.num_channels, (1, 1), name="conv3")(y)
        if self.use_1x1conv:
            x = self.conv(self.num_channels, (1, 1), self.strides, name="conv4")(x)
            x = norm(name="bn4")(x)
        return self.join(self.conv, partial(norm, name="bn3"), y, x, train)


class BasicBlock(Block):
    """torchvision's basic block: two 3x3 convolutions without bias and a shortcut, ReLU(g(x) + x).

    x: (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), num_channels).
    With use_1x1conv the shortcut is a 1x1 convolution and a batch norm (the paper's option B), or with pad_shortcut
    every strides-th pixel and zeros for the channels that are new (option A), half of them before the old ones.
    Without it, C must equal num_channels and strides be 1 (else ConfigError).
    Source: arXiv:1512.03385, figure 2 and section 3.3; torchvision.models.resnet.BasicBlock.
    """

    num_channels: int
    use_1x1conv: bool = False
    strides: int = 1
    pad_shortcut: bool = False
    conv: ModuleDef = TorchvisionConv
    norm: ModuleDef = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(self.norm, use_running_average=not train)
        if not self.use_1x1conv:
            check_identity("BasicBlock", x, self.num_channels, self.strides)
        y = self.conv(self.num_channels, (3, 3), self.strides, padding=1, name="conv1")(x)
        y = norm(name="bn1", relu=True)(y)
        y = self.conv(self.num_channels, (3, 3), padding=1, name="conv2")(y)
        if self.use_1x1conv and self.pad_shortcut:
            x = pad_channels(x[:, :: self.strides, :: self.strides], self.num_channels)
        elif self.use_1x1conv:
            x = self.conv(self.num_channels, (1, 1), self.strides, name="shortcut_conv")(x)
            x = norm(name="shortcut_bn")(x)
        return self.join(self.conv, partial(norm, name="bn2"), y, x, train)


def pad_channels(x: jax.Array, num_channels: int) -> jax.Array:
    """x with zeros for channels before and after its own. (N, H, W, C) -> (N, H, W, num_channels)."""
    new = num_channels - x.shape[-1]
    if new < 0:
        raise ConfigError(f"a shortcut cannot pad {x.shape[-1]} channels to {num_channels}; set pad_shortcut=False")
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))


class BottleneckBlock(Block):
    """torchvision's bottleneck: 1x1, grouped 3x3 and 1x1 convolutions without bias and a shortcut, ReLU(g(x) + x).

    x: (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), num_channels).
    num_channels are those put out; the bottleneck has round(num_channels * bot_mul), in `groups` groups (a number of
    groups, not a width as ResNeXtBlock's). The 3x3 has the stride ("v1.5"; the paper's has it on the first 1x1).
    ConfigError if groups do not divide the bottleneck, or if C or strides do not fit a shortcut without use_1x1conv.
    Source: arXiv:1512.03385, figure 5; arXiv:1611.05431, figure 3(c); torchvision.models.resnet.Bottleneck.
    """

    num_channels: int
    groups: int = 1
    bot_mul: float = 0.25
    use_1x1conv: bool = False
    strides: int = 1
    conv: ModuleDef = TorchvisionConv
    norm: ModuleDef = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(self.norm, use_running_average=not train)
        bot_channels = round(self.num_channels * self.bot_mul)
        if self.groups < 1 or bot_channels < 1 or bot_channels % self.groups:
            raise ConfigError(
                f"BottleneckBlock: groups {self.groups} must divide the {bot_channels} channels of the bottleneck "
                f"(num_channels {self.num_channels} x bot_mul {self.bot_mul})"
            )
        if not self.use_1x1conv:
            check_identity("BottleneckBlock", x, self.num_channels, self.strides)
        y = self.conv(bot_channels, (1, 1), name="conv1")(x)
        y = norm(name="bn1", relu=True)(y)
        y = self.conv(bot_channels, (3, 3), self.strides, padding=1, groups=self.groups, name="conv2")(y)
        y = norm(name="bn2", relu=True)(y)
        y = self.conv(self.num_channels, (1, 1), name="conv3")(y)
        if self.use_1x1conv:
            x = self.conv(self.num_channels, (1, 1), self.strides, name="shortcut_conv")(x)
            x = norm(name="shortcut_bn")(x)
        return self.join(self.conv, partial(norm, name="bn3"), y, x, train)


class PreActBlock(Block):
    """The wide residual network's block: norm and ReLU before each of two 3x3 convolutions, g(x) + x.

    x: (N, H, W, C) -> (N, ceil(H / strides), ceil(W / strides), num_channels).
    With use_1x1conv the shortcut is a 1x1 convolution of the normalised input, without a norm of its own. Without
    it, C must equal num_channels and strides be 1 (else ConfigError). What follows the last block must normalise.
    zero_init is that of the last kernel: a gamma of 0 before a ReLU would never get a gradient.
    Source: arXiv:1603.05027, figure 4(e); arXiv:1605.07146, figure 1(b).
    """

    num_channels: int
    use_1x1conv: bool = False
    strides: int = 1
    conv: ModuleDef = TorchvisionConv
    norm: ModuleDef = BatchNorm

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        norm = partial(self.norm, use_running_average=not train, relu=True)
        if not self.use_1x1conv:
            check_identity("PreActBlock", x, self.num_channels, self.strides)
        last = partial(self.conv, kernel_init=nn.initializers.zeros) if self.zero_init else self.conv
        y = norm(name="bn1")(x)
        if self.use_1x1conv:
            x = self.conv(self.num_channels, (1, 1), self.strides, name="shortcut_conv")(y)
        y = self.conv(self.num_channels, (3, 3), self.strides, padding=1, name="conv1")(y)
        y = norm(name="bn2")(y)
        y = last(self.num_channels, (3, 3), padding=1, name="conv2")(y)
        return self.finish(self.conv, y, train) + x
