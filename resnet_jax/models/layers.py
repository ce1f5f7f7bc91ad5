"""The layers that blocks are made of, with PyTorch's meaning of padding, momentum and bias initialisation."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import linen as nn
from jax import numpy as jnp

from resnet_jax import ops

Dtype = Any  # what jnp.dtype accepts
ModuleDef = Callable[..., Any]  # a module's class, or a partial of it

KERNEL_INIT = nn.initializers.xavier_uniform()
KAIMING_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # of a convolution before a ReLU
LINEAR_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))


def torch_bias_init(fan_in: int) -> nn.initializers.Initializer:
    """U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), which torch.nn.Conv2d and Linear give their biases."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """A convolution of square strides and symmetric, explicit padding.

    x: (N, H, W, C) -> (N, H', W', features), in dtype. kernel: (kh, kw, C / groups, features); bias: (features,).
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: int = 0
    groups: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = KERNEL_INIT
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel_shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, kernel_shape)
        fan_in = kernel_shape[0] * kernel_shape[1] * kernel_shape[2]
        bias = self.param("bias", torch_bias_init(fan_in), (self.features,)) if self.use_bias else None
        pad = (self.padding, self.padding)
        strides = (self.strides, self.strides)
        return ops.conv(x.astype(self.dtype), kernel, bias, strides=strides, padding=(pad, pad), groups=self.groups)


class BatchNorm(nn.Module):
    """Batch normalisation, then an addition, a ReLU and a max-pool where asked: one pass over memory does them all.

    x, residual: (N, H, W, C) -> (N, H, W, C), in dtype; with pool, which goes with relu and no residual, the 3x3
    max-pool of stride 2, (N, ceil(H / 2), ceil(W / 2), C). Parameters, statistics and the arithmetic are float32.
    The running averages keep `momentum` of the old value (PyTorch's 0.1 is 0.9 here) and, as everywhere in Flax,
    the biased variance. axis_name makes the statistics those of all devices along that pmap axis.
    """

    use_running_average: bool
    relu: bool = False
    pool: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, residual: jax.Array | None = None) -> jax.Array:
        x = x.astype(self.dtype)
        channels = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros_init(), channels)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if self.use_running_average:
            y = ops.batch_norm_inference(
                x, scale, bias, mean.value, var.value, epsilon=self.epsilon, relu=self.relu, residual=residual
            )
            return ops.max_pool(y) if self.pool else y
        # init runs outside pmap, where the axis has no name
        how = {"epsilon": self.epsilon, "axis_name": None if self.is_initializing() else self.axis_name}
        if self.pool:
            y, batch_mean, batch_var = ops.batch_norm_relu_max_pool(x, scale, bias, **how)
        else:
            y, batch_mean, batch_var = ops.batch_norm(x, scale, bias, relu=self.relu, residual=residual, **how)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
        return y


class Dense(nn.Module):
    """A fully connected layer, always in float32: it is small, and logits want the digits.

    x: (N, C) -> (N, features). kernel: (C, features); bias: (features,).
    """

    features: int
    kernel_init: nn.initializers.Initializer = KERNEL_INIT

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", torch_bias_init(x.shape[-1]), (self.features,))
        return jnp.dot(x.astype(jnp.float32), kernel, precision="highest") + bias


# as torchvision makes and initialises them: no bias before a batch norm
TorchvisionConv = partial(Conv, use_bias=False, kernel_init=KAIMING_INIT)
TorchvisionDense = partial(Dense, kernel_init=LINEAR_INIT)
