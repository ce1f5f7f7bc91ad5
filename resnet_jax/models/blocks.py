"""The residual blocks.

A block is handed its convolution and its norm: the trunk binds dtype, momentum and axis into them, the block
adds what is its own. A norm takes `relu=True` and `residual=x`, since what follows it is done in the same pass.
"""

from functools import partial

import jax
from flax import linen as nn

from resnet_jax.errors import ConfigError
from resnet_jax.models.layers import BatchNorm, Conv, ModuleDef


def check_identity(block: str, x: jax.Array, num_channels: int, strides: int) -> None:
    """Raise ConfigError where x itself cannot be added to what the block makes of it."""
    if x.shape[-1] != num_channels or strides != 1:
        raise ConfigError(
            f"{block}: the shortcut is the input itself, so num_channels {num_channels} must equal the input's "
            f"{x.shape[-1]} channels and strides {strides} must be 1; or set use_1x1conv=True"
        )


class Residual(nn.Module):
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
        norm = partial(self.norm, use_running_average=not train, relu=True)
        if not self.use_1x1conv:
            check_identity("Residual", x, self.num_channels, self.strides)
        y = self.conv(self.num_channels, (3, 3), self.strides, padding=1, name="conv1")(x)
        y = norm(name="bn1")(y)
        y = self.conv(self.num_channels, (3, 3), padding=1, name="conv2")(y)
        if self.use_1x1conv:  # no batch norm here: the seed has none, torchvision does
            x = self.conv(self.num_channels, (1, 1), self.strides, name="conv3")(x)
        return norm(name="bn2")(y, residual=x)


class ResNeXtBlock(nn.Module):
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
        return norm(name="bn3", relu=True)(y, residual=x)
