"""A whole small network: the same loss curve both ways, XLA's own program on GPU and TPU."""

import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from test_ops import WAYS, normal

from resnet_jax import ops

PAD = ((1, 1), (1, 1))


def network(parameters, x):
    """Stem, two residual blocks, head; every operation of ops at least once."""
    stem, blocks, head = parameters
    x = ops.conv(x, *stem[:2], strides=(2, 2), padding=((3, 3), (3, 3)))
    x, *_ = ops.batch_norm_relu_max_pool(x, *stem[2:])
    for kernels in blocks:
        y = x
        for i, (kernel, bias, scale, offset) in enumerate(kernels):
            y = ops.conv(y, kernel, bias, padding=PAD)
            y, *_ = ops.batch_norm(y, scale, offset, relu=True, residual=x if i else None)
        x = y
    return jnp.mean(x.astype(jnp.float32), (1, 2)) @ head


def parameters():
    def layer(seed, side, inputs, outputs):
        scale = (2 / (side * side * inputs)) ** 0.5
        return (
            scale * normal(seed, side, side, inputs, outputs),
            jnp.zeros(outputs),
            jnp.ones(outputs),
            jnp.zeros(outputs),
        )

    blocks = [[layer(10 * b + i, 3, 16, 16) for i in range(2)] for b in range(1, 3)]
    return layer(1, 7, 1, 16), blocks, normal(2, 16, 10) / 4


def losses(way, dtype, steps=20):
    x, labels = normal(3, 16, 24, 24, 1).astype(dtype), jnp.arange(16) % 10

    def loss(p):
        return -jnp.mean(jax.nn.log_softmax(network(p, x))[jnp.arange(16), labels])

    def step(p):
        value, gradient = jax.value_and_grad(loss)(p)
        return jax.tree.map(lambda a, b: a - 0.05 * b, p, gradient), value

    with ops.cpu_kernels(way):
        p, run, curve = parameters(), jax.jit(step), []
        for _ in range(steps):
            p, value = run(p)
            curve.append(float(value))
    return np.array(curve)


def plain_losses():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "resnet_jax.ops.api.by_platform", lambda native, xla_cpu, accelerator, plainly, *args: plainly(*args)
        )
        return losses("xla", jnp.float32)


@pytest.mark.parametrize("way", WAYS)
def test_loss_curves_of_20_steps_agree(way):
    expected = plain_losses()
    assert expected[-1] < 0.7 * expected[0]  # it learns, so the curve says something
    np.testing.assert_allclose(losses(way, jnp.float32), expected, rtol=1e-4)
    np.testing.assert_allclose(losses(way, jnp.bfloat16), expected, rtol=5e-2, atol=2e-2)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_gpu_and_tpu_get_their_own_forms(platform):
    """The operations in the program are those of xla_gpu_tpu.py; what the other ways need is dead zeros at most."""

    def operations(choose):
        with pytest.MonkeyPatch.context() as patch:
            if choose:
                patch.setattr("resnet_jax.ops.api.by_platform", choose)
            step = jax.jit(jax.grad(lambda p, x: jnp.sum(network(p, x) ** 2)))
            text = export.export(step, platforms=[platform])(parameters(), jnp.ones((4, 24, 24, 1))).mlir_module()
        assert "@resnet_jax_" not in text
        counts = Counter(re.findall(r"stablehlo\.(\w+)", text))
        for structure in ("return", "case", "constant", "broadcast_in_dim"):
            counts.pop(structure, None)
        return counts

    assert operations(None) == operations(lambda native, xla_cpu, accelerator, plainly, *args: accelerator(*args))


def test_one_export_for_all_platforms():
    """platform_dependent keeps each platform's own way in one file, if the reader's CPU may lack ours."""
    unchecked = [export.DisabledSafetyCheck.custom_call("resnet_jax_conv_forward")]
    text = export.export(
        jax.jit(partial(ops.conv, padding=PAD)), platforms=["cpu", "cuda", "tpu"], disabled_checks=unchecked
    )(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))).mlir_module()
    assert "stablehlo.convolution" in text
    assert ("resnet_jax_conv_forward" in text) == ops.native_available()
