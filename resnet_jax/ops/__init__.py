"""The operations that networks consist of: convolution, max-pool and batch norm on (N, H, W, C) images.

Each operation has four implementations. JAX picks one when it lowers a program for a platform, so the same
model object runs on every platform:

    plain.py         XLA's own operations: for float64, and on request
    xla_gpu_tpu.py   the same operations, those of the stem in forms for which XLA moves fewer bytes on a GPU or TPU
    xla_cpu.py       the same operations in forms that XLA compiles to faster code on a CPU
    native.py        oneDNN and our own C++ through jax.ffi, on a CPU with the package resnet_jax_onednn

`cpu_kernels` chooses the implementation for the CPU. The last three define gradients by hand
(jax.custom_vjp), so JAX cannot differentiate them in forward mode or twice. For jax.jvp, jax.hessian,
Hessian-vector products and gradients of gradients, choose "plain", on a GPU or TPU too:

    with resnet_jax.ops.cpu_kernels("plain"):
        _, product = jax.jvp(jax.grad(loss), (params,), (vector,))
"""

from resnet_jax.ops.api import batch_norm, batch_norm_inference, batch_norm_relu_max_pool, conv, conv_add_relu, max_pool
from resnet_jax.ops.select import cpu_kernels, native_available, native_bfloat16, native_chosen, use_cpu_kernels

__all__ = [
    "batch_norm",
    "batch_norm_inference",
    "batch_norm_relu_max_pool",
    "conv",
    "conv_add_relu",
    "cpu_kernels",
    "max_pool",
    "native_available",
    "native_bfloat16",
    "native_chosen",
    "use_cpu_kernels",
]
