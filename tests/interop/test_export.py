"""Exported programs and the native kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from resnet_jax import ops
from resnet_jax.interop.export import export_program

KERNEL = jnp.ones((3, 3, 1, 2)) / 9


@jax.jit
def predict(images: jax.Array) -> jax.Array:
    return ops.conv(images / 255, KERNEL).mean((1, 2))


@pytest.mark.skipif(not ops.native_available(), reason="needs the native kernels")
def test_jax_refuses_native_kernels_and_export_program_does_not(tmp_path):
    """Issue 11, case 22, also after the function has run with the native kernels."""
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 1), np.uint8)
    expected = predict(images)
    with pytest.raises(ValueError, match="custom calls whose targets have no compatibility guarantees"):
        export.export(predict)(images)
    size = export_program(predict, (6, 6, 1), tmp_path / "predict.jax_export")
    content = (tmp_path / "predict.jax_export").read_bytes()
    assert len(content) == size
    np.testing.assert_allclose(export.deserialize(bytearray(content)).call(images), expected, rtol=1e-5, atol=1e-6)
