"""Settings of all tests of models.

The models are compared with PyTorch on XLA's kernels; test_kernels.py and tests/ops compare the other kernels with
XLA's. Whole networks at 28x28 depend on the last digit: batch norm over a few 1x1 pixels amplifies it until a ReLU
changes sides.
"""

import pytest

from resnet_jax import ops


@pytest.fixture(autouse=True)
def xla_kernels():
    with ops.cpu_kernels("xla"):
        yield
