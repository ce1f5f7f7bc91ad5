"""Gradients under jax.shard_map over 8 fake devices, with its check of varying types, against one device's."""

from functools import partial

import jax
import numpy as np
import pytest
from jax import export
from jax import numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from test_ops import WAYS, block_operands, normal
from thorough import thorough_except

from resnet_jax import ops

DEVICES = 8
CHOICES = [*WAYS, pytest.param("plain", marks=pytest.mark.thorough)]
WHOLE, SPLIT = PartitionSpec(), PartitionSpec("batch")
PAD = ((1, 1), (1, 1))


def mesh(*shape):
    names = ("batch", "copies")[: len(shape)]
    return Mesh(np.array(jax.devices()[:DEVICES]).reshape(shape), names)


def share(parameters, x, axis_name=None):
    """Every operation once: the sum of squares, and the statistics."""
    w, b, scale, offset = parameters
    y, *first = ops.batch_norm_relu_max_pool(x, scale, offset, axis_name=axis_name)
    z = ops.conv(y, w, b, padding=PAD)
    z, *second = ops.batch_norm(z, scale, offset, relu=True, residual=y, axis_name=axis_name)
    z = ops.conv(z, w[:, 1:2], None)
    return jnp.sum(ops.max_pool(z).astype(jnp.float32) ** 2) / 10, (first, second)


def near(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1, np.abs(b).max()))


def operands(dtype=jnp.float32):
    x, *parameters = block_operands(2 * DEVICES)
    return parameters, x.astype(dtype)


@pytest.mark.parametrize("way", CHOICES)
@pytest.mark.parametrize("axes", [(DEVICES,), pytest.param((4, 2), marks=pytest.mark.thorough)])
def test_gradients_with_shared_statistics(way, axes):
    """Synchronised statistics: 8 devices compute what one computes on the whole batch.

    With two mesh axes the images are split over the first and copied over the second.
    """
    parameters, x = operands()

    def many(parameters, x):
        return jax.grad(partial(share, axis_name="batch"), argnums=(0, 1), has_aux=True)(parameters, x)

    with ops.cpu_kernels(way):
        mapped = jax.shard_map(many, mesh=mesh(*axes), in_specs=(WHOLE, SPLIT), out_specs=((WHOLE, SPLIT), WHOLE))
        found = jax.jit(mapped)(parameters, x)
        expected = jax.jit(lambda *p: jax.grad(share, argnums=(0, 1), has_aux=True)(*p))(parameters, x)
    near(found, expected)


@pytest.mark.parametrize("way", CHOICES)
@pytest.mark.parametrize("dtype", thorough_except(("float32", "bfloat16"), "float32"))
def test_gradients_with_local_statistics(way, dtype):
    """Gradients of replicated parameters are the sums over devices; outputs and statistics are each device's own."""
    parameters, x = operands(dtype)

    def many(parameters, x):
        return jax.grad(lambda *p: share(*p)[0], argnums=(0, 1))(parameters, x)

    with ops.cpu_kernels(way):
        mapped = jax.shard_map(many, mesh=mesh(DEVICES), in_specs=(WHOLE, SPLIT), out_specs=(WHOLE, SPLIT))
        found = jax.jit(mapped)(parameters, x)
        one = jax.jit(lambda *p: many(*p))
        parts = [one(parameters, images) for images in jnp.split(x, DEVICES)]
    expected = jax.tree.map(lambda *leaves: sum(leaves), *(part[0] for part in parts))
    near(found[0], expected)
    np.testing.assert_array_equal(found[1], jnp.concatenate([part[1] for part in parts]))


@pytest.mark.skipif(not hasattr(jax.lax, "pcast"), reason="jax 0.7 has no vmap of a convolution inside shard_map")
@pytest.mark.parametrize("way", CHOICES)
def test_vmap_inside(way):
    """Two sets of parameters at once, on every device."""
    parameters, x = operands()
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), parameters)

    def many(stacked, x):
        return jax.vmap(jax.grad(lambda *p: share(*p, axis_name="batch")[0]), (0, None))(stacked, x)

    with ops.cpu_kernels(way):
        mapped = jax.shard_map(many, mesh=mesh(DEVICES), in_specs=(WHOLE, SPLIT), out_specs=WHOLE)
        found = jax.jit(mapped)(stacked, x)
        expected = jax.jit(lambda *p: jax.grad(lambda *q: share(*q)[0])(*p))(parameters, x)
    near(jax.tree.map(lambda leaf: leaf[0], found), expected)


@pytest.mark.parametrize("way", CHOICES)
@pytest.mark.parametrize("size", [2, 3])
def test_narrow_images(way, size):
    """Images 2 or 3 pixels wide have a rule of their own in native.py."""
    x, w, b = normal(1, DEVICES, 4, size, 8), normal(2, 3, 3, 8, 8) / 8, normal(3, 8)

    def loss(w, b, x):
        return jnp.sum(ops.conv(x, w, b, padding=PAD) ** 2)

    def gradient(*p):
        return jax.grad(loss, argnums=(0, 1, 2))(*p)

    with ops.cpu_kernels(way):
        mapped = jax.shard_map(
            gradient, mesh=mesh(DEVICES), in_specs=(WHOLE, WHOLE, SPLIT), out_specs=(WHOLE, WHOLE, SPLIT)
        )
        found, expected = jax.jit(mapped)(w, b, x), jax.jit(gradient)(w, b, x)
    near(found, expected)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowering_for_other_platforms(platform):
    parameters, x = operands()

    def many(parameters, x):
        return jax.grad(lambda *p: share(*p, axis_name="batch")[0])(parameters, x)

    mapped = jax.jit(jax.shard_map(many, mesh=mesh(DEVICES), in_specs=(WHOLE, SPLIT), out_specs=WHOLE))
    text = export.export(mapped, platforms=[platform])(parameters, x).mlir_module()
    assert "@resnet_jax_" not in text
    assert "stablehlo.convolution" in text
