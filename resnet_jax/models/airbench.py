"""airbench: a small network without shortcuts that trains fast on small images, and the whitening of its first layer.

Source: arXiv:2404.00498 and the code of airbench94, https://github.com/KellerJordan/cifar10-airbench.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax import numpy as jnp

from resnet_jax import ops
from resnet_jax.errors import ConfigError
from resnet_jax.models.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dense,
    Dtype,
    ModuleDef,
    bind,
    bind_trunk,
    gelu,
    linear_init,
    norm_act,
)
from resnet_jax.ops.plain import widened

WIDTHS = (64, 256, 256)
PATCH = 2  # pixels: the side of the first convolution
HEAD_SCALE = 1 / 9  # of the logits
EPSILON = 5e-4  # added to the eigenvalues, as in airbench94
WHITENED = "stem/conv/kernel"  # the path of the kernel that whitening sets, for `freeze`
WHITENING_IMAGES = 5000  # the first training images, as in airbench94

AirbenchConv = partial(Conv, use_bias=False, kernel_init=linear_init)  # PyTorch's own initialisation of Conv2d
AirbenchDense = partial(Dense, use_bias=False, kernel_init=linear_init)


class WhiteningStem(nn.Module):
    """A 2x2 convolution without padding and the activation. `whitening` computes its kernel from training images.

    x: (N, H, W, C) -> (N, H - 1, W - 1, 8 C): each of the 4 C principal components of a patch, with both signs.
    """

    conv: ModuleDef
    act: Activation

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        features = 2 * PATCH**2 * x.shape[-1]
        return self.act(self.conv(features, (PATCH, PATCH), use_bias=True, name="conv")(x))


class ConvGroup(nn.Module):
    """Two 3x3 convolutions, each with a norm and the activation; a 2x2 max-pool follows the first convolution.

    x: (N, H, W, C) -> (N, floor(H / 2), floor(W / 2), features).
    """

    features: int
    conv: ModuleDef
    norm: ModuleDef
    act: Activation

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv = partial(self.conv, self.features, (3, 3), padding=1)
        x = ops.max_pool(conv(name="conv1")(x), (2, 2), (2, 2), ((0, 0), (0, 0)))
        x = norm_act(self.norm, self.act, x, train, "bn1")
        return norm_act(self.norm, self.act, conv(name="conv2")(x), train, "bn2")


class Airbench(nn.Module):
    """A 2x2 convolution, groups of two 3x3 convolutions, a global max-pool and a dense head without bias.

    x: (N, H, W, C), any C -> logits (N, num_classes), float32, scaled by 1/9. ConfigError for an image that is too
    small. num_classes: 0 removes the head, so that the model returns the pooled features (N, C), float32.
    widths: the channels of each group. The norms have no scale. The other arguments are those of ResNet.
    airbench94 has a momentum of 0.6 in its batch norms, an epsilon of 1e-12 (here 1e-5), and it pools 3x3 pixels: the
    whole image for inputs of 25 to 32 pixels. The global pool takes any larger image, too.
    """

    widths: tuple[int, ...] = WIDTHS
    num_classes: int = 10
    dtype: Dtype = jnp.float32
    axis_name: str | None = None
    conv: ModuleDef = AirbenchConv
    dense: ModuleDef = AirbenchDense
    norm: ModuleDef = BatchNorm
    act: Activation = gelu

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_airbench_size(x.shape[1:3], len(self.widths))
        conv = partial(self.conv, dtype=self.dtype)
        norm = bind(bind_trunk(self.norm, self.dtype, self.axis_name), use_scale=False)
        x = WhiteningStem(conv, self.act, name="stem")(x, train)
        for i, features in enumerate(self.widths):
            x = ConvGroup(features, conv, norm, self.act, name=f"stage{i + 1}")(x, train)
        x = widened(x).max((1, 2))
        return x if self.num_classes == 0 else self.dense(self.num_classes, name="head")(x) * HEAD_SCALE


def check_airbench_size(size: tuple[int, ...], num_groups: int) -> None:
    """Raise ConfigError if an image of (height, width) pixels is too small for the groups."""
    least = 2**num_groups + PATCH - 1
    if min(size) < least:
        raise ConfigError(
            f"image size {'x'.join(map(str, size))} is too small: {num_groups} groups halve it; "
            f"use at least {least}x{least}"
        )


def whitening(batches: Any) -> dict[str, Any]:
    """The variables of the stem whose convolution whitens the patches of these images, to start a fit from.

    batches: arrays of images (N, H, W, C), floating, as the model takes them (resized and normalised). The patches
    are 2x2 pixels of all channels, 4 C numbers; their mean is not subtracted. Each eigenvector of their second
    moments, divided by the root of its eigenvalue + 5e-4, is a filter; the negative filters follow. The bias is 0.
    Returns {"params": {"stem": {"conv": {"kernel": (2, 2, C, 8 C), "bias": (8 C,)}}}}, float32.

        start = whitening([images[:5000]])
        Trainer(freeze=["stem/conv/kernel"]).fit(create_model("airbench"), data, variables=start)
    """
    total, count, channels = np.zeros(()), 0, 0
    for images in batches:
        x = np.asarray(images, np.float64)
        channels, (height, width) = x.shape[-1], (x.shape[1] - PATCH + 1, x.shape[2] - PATCH + 1)
        shifts = [(down, right) for down in range(PATCH) for right in range(PATCH)]
        patches = np.stack([x[:, down : down + height, right : right + width] for down, right in shifts], axis=3)
        patches = patches.reshape(-1, PATCH**2 * channels)
        total, count = total + patches.T @ patches, count + len(patches)
    values, vectors = np.linalg.eigh(total / count)  # the smallest eigenvalue first
    filters = (vectors / np.sqrt(np.maximum(values, 0) + EPSILON))[:, ::-1]
    kernel = np.concatenate([filters, -filters], axis=1).reshape(PATCH, PATCH, channels, -1).astype(np.float32)
    return {"params": {"stem": {"conv": {"kernel": kernel, "bias": np.zeros(kernel.shape[-1], np.float32)}}}}
