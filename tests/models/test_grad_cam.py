"""Grad-CAM, against one worked out by hand in numpy, and against the head of a ResNet."""

from functools import partial
from typing import Any

import flax_side
import jax
import numpy as np
import pytest
import seeded
from flax import linen as nn
from jax import numpy as jnp
from thorough import thorough_except

import resnet_jax
from resnet_jax import ResNet, create_model, features, grad_cam
from resnet_jax.errors import ConfigError
from resnet_jax.models import PreActBlock
from resnet_jax.ops import cpu_kernels, native_available

SHAPE = (5, 7, 6, 2)


class TwoLayers(nn.Module):
    """A convolution, ReLU, global average pooling and a dense layer."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.Conv(4, (3, 3), padding="VALID", name="conv")(x))
        return nn.Dense(3, name="dense")(x.mean((1, 2)))


def by_hand(held, x, classes) -> tuple[np.ndarray, np.ndarray]:
    """The maps and the logits of TwoLayers in float64, with each derivative written out.

    logit_c = sum_k w_kc mean_ij(relu(A_ijk)) + b_c, so d logit_c / d A_ijk = w_kc [A_ijk > 0] / (h w), and its mean
    over the positions is w_kc * (the share of positions with A_ijk > 0) / (h w).
    """
    conv, dense = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), held["params"][n]) for n in ("conv", "dense")
    )
    n, height, width, _ = x.shape
    outputs = np.zeros((n, height - 2, width - 2, 4))
    for i in range(height - 2):
        for j in range(width - 2):
            outputs[:, i, j] = np.einsum("nabc,abck->nk", x[:, i : i + 3, j : j + 3], conv["kernel"]) + conv["bias"]
    logits = np.maximum(outputs, 0).mean((1, 2)) @ dense["kernel"] + dense["bias"]
    classes = logits.argmax(1) if classes is None else np.broadcast_to(classes, n)
    positions = (height - 2) * (width - 2)
    weights = dense["kernel"][:, classes].T * (outputs > 0).mean((1, 2)) / positions  # (N, 4)
    return np.maximum(np.einsum("nk,nijk->nij", weights, outputs), 0), logits


@pytest.mark.parametrize("classes", [None, 2, [0, 1, 2, 1, 0], np.array([2, 2, 0, 1, 1], np.uint8)])
@pytest.mark.parametrize("jitted", [False, True])
def test_two_layers_by_hand(classes, jitted):
    model, x = TwoLayers(), seeded.normal("two layers", SHAPE)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), x)
    held = {"params": seeded.filled(shapes["params"])}
    dense = held["params"]["dense"]
    dense["bias"] = np.float32(dense["bias"] - by_hand(held, x, None)[1].mean(0))  # so that predictions differ
    expected, logits = by_hand(held, x, classes)
    assert len(set(logits.argmax(1))) > 1
    find = jax.jit(partial(grad_cam, model)) if jitted else partial(grad_cam, model)
    maps = find(held, x, classes) if classes is None else find(held, x, jnp.asarray(classes))
    assert (maps.shape, maps.dtype) == ((5, 5, 4), jnp.float32)
    np.testing.assert_allclose(maps, expected, atol=1e-6)
    np.testing.assert_array_equal(maps, find(held, x, None if classes is None else jnp.asarray(classes)))
    assert (maps == 0).any()
    assert (maps > 0).any()
    for i in range(2):  # an image's map does not depend on the others
        one = None if classes is None else np.broadcast_to(classes, 5)[i : i + 1]
        np.testing.assert_allclose(grad_cam(model, held, x[i : i + 1], one)[0], maps[i], atol=1e-6)


NETS = {
    "residual": ResNet(((1, 8), (2, 16)), stem_channels=8),
    "preact": ResNet(((1, 8), (1, 16)), block=PreActBlock, preact=True, stem="small", stem_channels=8),
    "preact group norm": ResNet(
        ((1, 8), (1, 16)),
        block=PreActBlock,
        preact=True,
        stem="small",
        stem_channels=8,
        norm=partial(nn.GroupNorm, num_groups=4),
    ),
    "preact gelu": ResNet(
        ((1, 8), (1, 16)), block=PreActBlock, preact=True, stem="small", stem_channels=8, act=nn.gelu
    ),
    "group norm": ResNet(((1, 8), (1, 16)), stem_channels=8, norm=partial(nn.GroupNorm, num_groups=4)),
    "remat": ResNet(((1, 8), (1, 16)), stem_channels=8, remat=True),
}


@pytest.mark.parametrize("name", thorough_except(NETS, "residual", "preact group norm"))
def test_the_default_layer_of_a_resnet_is_what_is_pooled(name):
    """There the gradient of a logit is the head's column over h w, so the map is each position's part of the logit."""
    model, x = NETS[name], seeded.normal("cam", (3, 16, 20, 3))
    held = flax_side.variables(model, x.shape)
    layer = {"preact": "bn", "preact group norm": "bn_act", "preact gelu": "bn_act"}.get(name, "stage2")
    _, state = flax_side.apply(model, held, x, capture_intermediates=True, mutable=["intermediates"])
    (pooled,) = state["intermediates"][layer]["__call__"]
    head = held["params"]["head"]
    parts = pooled @ head["kernel"] / (pooled.shape[1] * pooled.shape[2])
    logits = parts.sum((1, 2)) + head["bias"]
    np.testing.assert_allclose(logits, flax_side.apply(model, held, x), atol=1e-4)
    classes = np.asarray(logits.argmax(1))
    expected = np.maximum([parts[i, ..., classes[i]] for i in range(3)], 0)
    np.testing.assert_allclose(jax.jit(partial(grad_cam, model))(held, x), expected, atol=1e-5)
    np.testing.assert_allclose(grad_cam(model, held, x, classes, layer), expected, atol=1e-5)
    np.testing.assert_allclose(grad_cam(model, held, x, 4), np.maximum(parts[..., 4], 0), atol=1e-5)


@pytest.mark.parametrize("layer", ["stem", "stage1", "stage2/block1", "stage2/block2/conv1"])
def test_an_inner_layer_is_the_chain_rule_through_the_rest(layer):
    """The gradient by finite differences of the network behind an output that is replaced."""
    model, x = NETS["residual"], seeded.normal("cam", (1, 16, 20, 3))
    held, path = flax_side.variables(model, x.shape), tuple(layer.split("/"))

    def logits(change):
        def add(call, args, kwargs, context):
            y = call(*args, **kwargs)
            return y + change if context.module.path == path and context.method_name == "__call__" else y

        with nn.intercept_methods(add):
            return flax_side.apply(model, held, x, capture_intermediates=True, mutable=["intermediates"])

    _, state = logits(0.0)
    held_by = state["intermediates"]
    for part in path:
        held_by = held_by[part]
    (output,) = held_by["__call__"]
    step, weights = 0.02, []
    logit = jax.jit(lambda change: logits(change)[0][0, 9])
    for k in range(output.shape[-1]):  # adding to a whole channel gives the sum of its gradient
        change = jnp.zeros(output.shape).at[..., k].set(step)
        weights.append((logit(change) - logit(-change)) / (2 * step) / (output.shape[1] * output.shape[2]))
    expected = np.maximum(output[0] @ np.array(weights), 0)
    found = grad_cam(model, held, x, 9, layer)[0]
    assert found.shape == output.shape[1:3]
    assert expected.max() > 0
    np.testing.assert_allclose(found, expected, atol=0.05 * expected.max())


@pytest.mark.parametrize("layer", thorough_except((None, "stage2", "stage1/block1"), "stage2"))
def test_bfloat16_and_the_native_kernels(layer):
    x = seeded.normal("kernels", (2, 12, 12, 1))
    make = partial(create_model, "resnet20", width=0.5)
    held = flax_side.variables(make(), x.shape)
    with cpu_kernels("plain"):
        exact = np.asarray(grad_cam(make(), held, x, 1, layer))
    assert exact.max() > 0
    for kernels in ("xla", "onednn") if native_available() else ("xla",):
        with cpu_kernels(kernels):
            maps = jax.jit(lambda v, x: grad_cam(make(), v, x, 1, layer))(held, x)
            half = grad_cam(make(dtype=jnp.bfloat16), held, x, 1, layer)
        np.testing.assert_allclose(maps, exact, atol=1e-4 * exact.max())
        assert half.dtype == jnp.float32
        np.testing.assert_allclose(half, exact, atol=0.1 * exact.max())


@pytest.mark.parametrize(("column", "row"), thorough_except([(0, 0), (0, 1), (1, 0), (1, 1)], (0, 1), (1, 0)))
def test_the_map_is_where_the_picture_has_content(row, column):
    """resnet20 has no biases before its head: where a picture is 0 all around, so are the activations."""
    x = np.zeros((1, 64, 64, 1), np.float32)
    x[0, 8 + 40 * row : 16 + 40 * row, 8 + 40 * column : 16 + 40 * column] = 1
    model = create_model("resnet20")
    held = jax.jit(model.init)(jax.random.key(0), x)
    values = np.asarray(jax.jit(partial(grad_cam, model))(held, x))[0]
    assert values.shape == (16, 16)
    quarter = values[8 * row : 8 + 8 * row, 8 * column : 8 + 8 * column]
    assert quarter.sum() > 0.9 * values.sum() > 0


class Odd(nn.Module):
    """What Grad-CAM refuses: layers that run twice, inside nn.scan or nn.vmap, and none with an image."""

    form: str

    @nn.compact
    def __call__(self, x):
        if self.form == "twice":
            conv = nn.Conv(2, (1, 1), name="conv")
            x = conv(conv(x))
        if self.form == "scan":
            scan = nn.scan(Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
            x, _ = scan(name="body")(x, None)
        if self.form == "vmap":
            axes: Any = (0, None)
            each = nn.vmap(Body, in_axes=axes, variable_axes={"params": None}, split_rngs={"params": False})
            x = each(name="body")(x[:, None], None)[0][:, 0]
        x = nn.Dense(3, name="dense")(x.mean((1, 2)))
        return (x, x) if self.form == "pair" else x


class Body(nn.Module):
    """One convolution."""

    @nn.compact
    def __call__(self, x, _):
        return nn.Conv(2, (1, 1), name="conv")(x), None


@pytest.mark.parametrize(
    ("form", "layer", "message"),
    [
        ("none", None, r"none of its modules returns an array \(N, h, w, channels\)"),
        ("none", "dense", r"layer 'dense' returns shape \(2, 3\); use a layer that returns \(N, h, w, channels\)"),
        ("none", "conv", "unknown layer 'conv'"),
        ("twice", "conv", "layer 'conv' runs more than once, or inside nn.scan; use a layer that runs once"),
        ("scan", "body/conv", "layer 'body/conv' runs more than once, or inside nn.scan"),
        ("vmap", "body/conv", "layer 'body/conv' runs inside nn.vmap; use the layer around it"),
        ("pair", None, r"Odd does not return an array of logits \(N, K\)"),
    ],
)
def test_what_has_no_map(form, layer, message):
    x = jnp.ones((2, 4, 4, 2))
    held = Odd(form).init(jax.random.key(0), x)
    with pytest.raises(ConfigError, match=message):
        grad_cam(Odd(form), held, x, layer=layer)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (10, "classes: 10 does not exist; the model has the classes 0 to 9"),
        ([0, -1], "classes: -1 does not exist"),
        ([0, 1, 2], r"classes of dtype int64 and shape \(3,\): give one integer, or 2 integers"),
        ([0.0, 1.0], "classes of dtype float64"),
        (True, "classes of dtype bool"),
        ("shirt", "classes of dtype <U5"),
    ],
)
def test_classes_that_do_not_exist(classes, message):
    model = create_model("resnet20", width=0.5)
    held = flax_side.variables(model, (2, 8, 8, 1))
    with pytest.raises(ConfigError, match=message):
        grad_cam(model, held, jnp.zeros((2, 8, 8, 1)), classes)
    with pytest.raises(ConfigError, match=r"images of shape \(8, 8, 1\): give \(N, H, W, C\)"):
        grad_cam(model, held, jnp.zeros((8, 8, 1)))
    with pytest.raises(ConfigError, match="unknown layer 'stage4': did you mean stage3"):
        grad_cam(model, held, jnp.zeros((2, 8, 8, 1)), layer="stage4")


def test_the_map_of_the_pooled_features_sums_to_the_logit():
    """With a head of positive numbers nothing is cut off by the ReLU."""
    model, x = create_model("resnet20", width=0.5), jnp.asarray(seeded.normal("sum", (2, 16, 16, 1)))
    held = flax_side.variables(model, x.shape)
    head = {"kernel": np.abs(held["params"]["head"]["kernel"]), "bias": np.zeros(10, np.float32)}
    held = {**held, "params": {**held["params"], "head": head}}
    pooled = features(model, held, x)["pooled"]
    found = resnet_jax.grad_cam(model, held, x, [3, 5]).sum((1, 2))
    np.testing.assert_allclose(found, [pooled[0] @ head["kernel"][:, 3], pooled[1] @ head["kernel"][:, 5]], rtol=1e-4)
