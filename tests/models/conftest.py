"""The models are held to PyTorch's numbers with XLA's kernels, the other kernels to XLA's (test_kernels.py, tests/ops).

Whole networks at 28x28 turn on the last digit: batch norm over a handful of 1x1 pixels amplifies it until a ReLU flips.
"""

import pytest

from resnet_jax import ops


@pytest.fixture(autouse=True)
def xla_kernels():
    with ops.cpu_kernels("xla"):
        yield
