"""The layers that blocks consist of. Padding, momentum and the initialisation of biases are PyTorch's."""

import inspect
import operator
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import jax
from flax import linen as nn
from jax import numpy as jnp

from resnet_jax import ops
from resnet_jax.errors import ConfigError
from resnet_jax.ops.plain import widened

Dtype = Any  # what jnp.dtype accepts
ModuleDef = Callable[..., Any]  # a module's class, or a partial of it
Activation = Callable[[jax.Array], jax.Array]
Strides = int | Sequence[int]  # one number, or (along H, along W)

KERNEL_INIT = nn.initializers.xavier_uniform()
_KAIMING = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
_LINEAR = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


# These four are functions of this module, so that a model that holds them can be pickled.
def kaiming_init(*args: Any, **options: Any) -> jax.Array:
    """He initialisation of a convolution before a ReLU: normal, variance 2 / fan_out."""
    return _KAIMING(*args, **options)


def linear_init(*args: Any, **options: Any) -> jax.Array:
    """U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), as torch.nn.Linear."""
    return _LINEAR(*args, **options)


def relu(x: jax.Array) -> jax.Array:
    """flax.linen.relu, max(x, 0)."""
    return nn.relu(x)


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function of x, arXiv:1606.08415, without the approximation by tanh."""
    return nn.gelu(x, approximate=False)


def dirac_init(kernel_init: nn.initializers.Initializer) -> nn.initializers.Initializer:
    """kernel_init, but the first C filters of a kernel (3, 3, C, at least C) start as the identity of their channel.

    torch.nn.init.dirac_ of arXiv:2404.00498, section 3.2. Kernels of other shapes keep kernel_init.
    """

    def init(key, shape, dtype=jnp.float32):
        kernel = kernel_init(key, shape, dtype)
        channels, features = shape[2:]
        if tuple(shape[:2]) != (3, 3) or features < channels:
            return kernel
        identity = jnp.zeros((3, 3, channels, channels), dtype).at[1, 1].set(jnp.eye(channels, dtype=dtype))
        return kernel.at[..., :channels].set(identity)

    return init


def torch_bias_init(fan_in: int) -> nn.initializers.Initializer:
    """U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), the initialisation of biases in torch.nn.Conv2d and Linear."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def stride_pair(strides: Strides) -> tuple[int, int]:
    """Strides along H and W, from one number or a pair; ConfigError for anything else."""
    try:
        pair = (strides,) * 2 if not isinstance(strides, Sequence) else strides
        down, right = (operator.index(stride) for stride in pair)
    except (TypeError, ValueError):
        down = right = 0
    if down < 1 or right < 1:
        raise ConfigError(f"strides {strides!r}: use a positive int, such as 2, or a pair of them, such as (2, 1)")
    return down, right


class Conv(nn.Module):
    """A convolution with symmetric, explicit padding.

    x: (N, H, W, C) -> (N, H', W', features), in dtype, to which x is cast. strides: 2, or (2, 1) for H and W.
    kernel: (kh, kw, C / groups, features); bias: (features,). dirac: see dirac_init; grouped kernels ignore it.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: Strides = 1
    padding: int = 0
    groups: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = KERNEL_INIT
    dtype: Dtype = jnp.float32
    dirac: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel_shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        init = dirac_init(self.kernel_init) if self.dirac and self.groups == 1 else self.kernel_init
        kernel = self.param("kernel", init, kernel_shape)
        fan_in = kernel_shape[0] * kernel_shape[1] * kernel_shape[2]
        bias = self.param("bias", torch_bias_init(fan_in), (self.features,)) if self.use_bias else None
        return ops.conv(x.astype(self.dtype), kernel, bias, **self.window())

    def window(self) -> dict[str, Any]:
        """How the window moves over the images: the options of ops.conv."""
        pad = (self.padding, self.padding)
        return {"strides": stride_pair(self.strides), "padding": (pad, pad), "groups": self.groups}


class BatchNorm(nn.Module):
    """Batch normalisation, optionally followed by an addition, a ReLU and a max-pool, in one pass over memory.

    x, residual: (N, H, W, C) -> (N, H, W, C), in dtype, to which both are cast. pool adds the 3x3 max-pool of
    stride 2, so the output is (N, ceil(H / 2), ceil(W / 2), C); in training it requires relu and no residual.
    Parameters, statistics and the arithmetic are float32. The running averages keep `momentum` of the old value
    (PyTorch's 0.1 is 0.9 here). As in Flax, the running variance is the biased one.
    use_scale: False leaves out the scale (gamma), which is then 1.
    axis_name: compute the statistics over all devices along this axis of pmap or shard_map.
    """

    use_running_average: bool
    relu: bool = False
    pool: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: Dtype = jnp.float32
    use_scale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, residual: jax.Array | None = None) -> jax.Array:
        x = x.astype(self.dtype)
        residual = None if residual is None else residual.astype(self.dtype)
        channels = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, channels) if self.use_scale else jnp.ones(channels)
        bias = self.param("bias", nn.initializers.zeros_init(), channels)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if self.use_running_average:
            y = ops.batch_norm_inference(
                x, scale, bias, mean.value, var.value, epsilon=self.epsilon, relu=self.relu, residual=residual
            )
            return ops.max_pool(y) if self.pool else y
        # init runs outside of pmap and shard_map, where the axis is not bound
        how = {"epsilon": self.epsilon, "axis_name": None if self.is_initializing() else self.axis_name}
        if self.pool:
            y, batch_mean, batch_var = ops.batch_norm_relu_max_pool(x, scale, bias, **how)
        else:
            y, batch_mean, batch_var = ops.batch_norm(x, scale, bias, relu=self.relu, residual=residual, **how)
        if not self.is_initializing():
            for average, batch in ((mean, batch_mean), (var, batch_var)):
                new = self.momentum * average.value + (1 - self.momentum) * batch
                average.value = new.astype(average.value.dtype)
        return y


def options_known(layer: ModuleDef) -> Collection[str]:
    """The names of the options that a layer, or a partial of one, takes."""
    return inspect.signature(layer).parameters


def bind(layer: ModuleDef, **options: Any) -> ModuleDef:
    """partial(layer, **options), but only with those options that the layer has and that are not yet bound."""
    known = options_known(layer)
    bound = layer.keywords if isinstance(layer, partial) else {}
    return partial(layer, **{name: value for name, value in options.items() if name in known and name not in bound})


def bind_trunk(norm: ModuleDef, dtype: Dtype, axis_name: str | None) -> ModuleDef:
    """The norm with the network's dtype and, if it is a batch norm, the axis of its statistics.

    Flax's GroupNorm and LayerNorm have an axis_name too. It would mix statistics of different images.
    """
    is_batch_norm = "use_running_average" in inspect.signature(norm).parameters
    return bind(norm, dtype=dtype, **({"axis_name": axis_name} if is_batch_norm else {}))


def start_at_zero(norm: ModuleDef) -> ModuleDef:
    """The norm with a scale that is initialised to 0; ConfigError if it has no scale_init."""
    if "scale_init" not in inspect.signature(norm).parameters:
        raise ConfigError(f"zero_init=True: the norm {norm} has no scale_init; use another norm or zero_init=False")
    return partial(norm, scale_init=nn.initializers.zeros)


class Act(nn.Module):
    """An activation as a layer, so that grad_cam and capture_intermediates find its output by a path."""

    function: Activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x)


def norm_act(
    norm: ModuleDef,
    act: Activation | None,
    x: jax.Array,
    train: bool,
    name: str,
    *,
    residual: jax.Array | None = None,
    pool: bool = False,
) -> jax.Array:
    """act(norm(x) + residual), then the 3x3 max-pool of stride 2 if pool is set. act None: no activation.

    BatchNorm with ReLU computes all of it in one pass over memory, in the layer `name`; any other pair runs one step
    after the other, and the activation is the layer `name`_act.
    norm: BatchNorm, a Flax norm, or a partial of one. `use_running_average` is passed if it has that option and
    the partial does not bind it: partial(BatchNorm, use_running_average=True) uses frozen statistics.
    """
    kind = norm
    while isinstance(kind, partial):
        kind = kind.func
    norm = bind(norm, use_running_average=not train)
    if kind is BatchNorm and (act is relu or act is nn.relu):
        return norm(name=name, relu=True, pool=pool)(x, residual=residual)
    y = norm(name=name)(x)
    if residual is not None:
        y = y + residual
    if act is not None:
        y = Act(act, name=f"{name}_act")(y)
    return ops.max_pool(y) if pool else y


class Dense(nn.Module):
    """A fully connected layer. It computes in float32 (float64 for float64): it is small, and logits need precision.

    x: (N, C) -> (N, features). kernel: (C, features); bias: (features,).
    """

    features: int
    kernel_init: nn.initializers.Initializer = KERNEL_INIT
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        y = jnp.dot(widened(x), kernel, precision="highest")
        return y + self.param("bias", torch_bias_init(x.shape[-1]), (self.features,)) if self.use_bias else y


# torchvision's layers and initialisation: convolutions before a norm have no bias
TorchvisionConv = partial(Conv, use_bias=False, kernel_init=kaiming_init)
TorchvisionDense = partial(Dense, kernel_init=linear_init)
