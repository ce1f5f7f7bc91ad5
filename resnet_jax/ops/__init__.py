"""What the networks are made of: convolution, max-pool and batch norm over (N, H, W, C) activations.

Each operation has one meaning and three implementations of it, chosen when the program is lowered, so that
the same model object runs everywhere:

    plain.py     XLA's own operations, on GPU and TPU (and for dtypes that the others do not take)
    xla_cpu.py   the same in forms that XLA compiles to faster code on a CPU
    native.py    oneDNN and our own C++ through jax.ffi, on a CPU where resnet_jax_onednn is installed

`use_cpu_kernels` picks between the last two.
"""

from resnet_jax.ops.api import batch_norm, batch_norm_inference, batch_norm_relu_max_pool, conv, max_pool
from resnet_jax.ops.select import cpu_kernels, native_available, native_chosen, use_cpu_kernels

__all__ = [
    "batch_norm",
    "batch_norm_inference",
    "batch_norm_relu_max_pool",
    "conv",
    "cpu_kernels",
    "max_pool",
    "native_available",
    "native_chosen",
    "use_cpu_kernels",
]
