"""The operations that a residual network spends its time in: convolution, max-pooling, batch normalisation."""

from resnet_jax.ops.conv import conv
from resnet_jax.ops.norm import batch_norm, batch_norm_inference
from resnet_jax.ops.pool import max_pool

__all__ = ["batch_norm", "batch_norm_inference", "conv", "max_pool"]
