"""airbench against a forward pass written here, its counts by hand, and whitening against its definition."""

from typing import Any

import jax
import numpy as np
import pytest
import seeded
from flax import linen as nn
from jax import lax
from jax import numpy as jnp
from thorough import thorough_except

from resnet_jax import create_model, insert_block, layer_summary
from resnet_jax.errors import ConfigError, InteropError
from resnet_jax.interop import from_torch, to_torch
from resnet_jax.models import Airbench, features, whitening
from resnet_jax.models.airbench import EPSILON

WIDTH = 0.125  # 8, 32 and 32 channels
X: Any = seeded.normal("airbench x", (4, 12, 11, 1))


def counts(channels, classes):
    """The parameters of each part: kernels (height * width * inputs * outputs) and biases."""
    first = 8 * channels
    return {
        "stem": 2 * 2 * channels * first + first,
        "stage1": 9 * first * 64 + 9 * 64 * 64 + 2 * 64,
        "stage2": 9 * 64 * 256 + 9 * 256 * 256 + 2 * 256,
        "stage3": 9 * 256 * 256 + 9 * 256 * 256 + 2 * 256,
        "head": 256 * classes,
    }


@pytest.mark.parametrize(("channels", "total"), [(1, 1_962_152), (3, 1_971_640)])
def test_parameter_counts(channels, total):
    """1.97 million for RGB images and 10 classes, arXiv:2404.00498."""
    table = layer_summary(create_model("airbench"), (1, 28, 28, channels))
    assert {row.layer: row.parameters for row in table} == counts(channels, 10)
    assert table.parameters == total
    assert [row.output_shape for row in table] == [
        (1, 27, 27, 8 * channels),
        (1, 13, 13, 64),
        (1, 6, 6, 256),
        (1, 3, 3, 256),
        (1, 10),
    ]


def convolved(x, kernel, pad):
    how = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": "highest"}
    return lax.conv_general_dilated(x, jnp.asarray(kernel), (1, 1), ((pad, pad), (pad, pad)), **how)


def pooled(x):
    down, right = x.shape[1] // 2, x.shape[2] // 2
    return x[:, : 2 * down, : 2 * right].reshape(len(x), down, 2, right, 2, -1).max((2, 4))


def normed(x, bias, statistics):
    """With the given statistics, or with those of the batch for None. Returns the variance of the batch too."""
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if statistics is None else statistics
    return jax.nn.gelu((x - mean) / jnp.sqrt(var + 1e-5) + bias, approximate=False), var


def forward(variables, x, train):
    """airbench94's layers in order, and the batch variance of the first norm."""
    params, held = variables["params"], variables["batch_stats"]
    conv = params["stem"]["conv"]
    x, variances = jax.nn.gelu(convolved(x, conv["kernel"], 0) + conv["bias"], approximate=False), []
    for stage in ("stage1", "stage2", "stage3"):
        for i in (1, 2):
            x = convolved(x, params[stage][f"conv{i}"]["kernel"], 1)
            x = pooled(x) if i == 1 else x
            norm = held[stage][f"bn{i}"]
            x, var = normed(x, params[stage][f"bn{i}"]["bias"], None if train else (norm["mean"], norm["var"]))
            variances.append(var)
    return x.max((1, 2)) @ params["head"]["kernel"] / 9, variances[0]


@pytest.mark.parametrize("train", [False, True])
def test_forward_and_running_variance(train):
    model: Any = create_model("airbench", width=WIDTH, batch_norm_momentum=0.6)
    held = jax.tree.map(lambda leaf: leaf + 0.1, model.init(jax.random.key(0), X))
    logits, changed = model.apply(held, X, train=train, mutable=["batch_stats"])
    expected, var = forward(held, X, train)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    before, after = (tree["batch_stats"]["stage1"]["bn1"]["var"] for tree in (held, changed))
    np.testing.assert_allclose(after, 0.6 * before + 0.4 * var if train else before, rtol=1e-4)


@pytest.mark.parametrize("norm", ["BatchNorm", "GroupNorm"])
def test_no_norm_has_a_scale(norm):
    model = create_model("airbench") if norm == "BatchNorm" else create_model("airbench", norm=nn.GroupNorm)
    params = model.init(jax.random.key(0), jnp.zeros((1, 9, 9, 1)))["params"]
    assert set(params["stage1"]["bn1"]) == {"bias"}


def test_bfloat16_keeps_float32_parameters_and_logits():
    model = create_model("airbench", width=WIDTH, dtype=jnp.bfloat16)
    logits, held = model.init_with_output(jax.random.key(0), X)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(held)} == {np.dtype(np.float32)}
    exact: Any = create_model("airbench", width=WIDTH).apply(held, X)
    np.testing.assert_allclose(logits, exact, atol=0.05 * np.abs(exact).max())


def test_the_features_are_those_of_the_parts():
    model: Any = create_model("airbench", width=WIDTH)
    held = model.init(jax.random.key(0), X)
    found = features(model, held, X)
    assert list(found) == ["stem", "stage1", "stage2", "stage3", "pooled"]
    np.testing.assert_allclose(found["pooled"] @ held["params"]["head"]["kernel"] / 9, model.apply(held, X), rtol=1e-5)


# ---- whitening ----


def test_whitened_patches_are_uncorrelated():
    """The outputs of the first half of the filters have the second moments value / (value + epsilon), and no others."""
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(50, 9, 9, 3)).cumsum(1).cumsum(2).astype(np.float32)
    stem = whitening([smooth[:20], smooth[20:]])["params"]["stem"]["conv"]
    assert stem["kernel"].shape == (2, 2, 3, 24)
    assert not stem["bias"].any()
    np.testing.assert_array_equal(stem["kernel"][..., 12:], -stem["kernel"][..., :12])
    outputs = np.asarray(convolved(jnp.asarray(smooth), stem["kernel"][..., :12], 0), np.float64).reshape(-1, 12)
    patches = np.stack([smooth[:, d : d + 8, r : r + 8] for d in (0, 1) for r in (0, 1)], 3).reshape(-1, 12)
    values = np.linalg.svd(patches.astype(np.float64), compute_uv=False) ** 2 / len(patches)
    np.testing.assert_allclose(outputs.T @ outputs / len(outputs), np.diag(values / (values + EPSILON)), atol=2e-3)


def test_whitening_of_equal_pixels_is_finite():
    """A set of black images has no variance: every eigenvalue is 0."""
    kernel = whitening([np.zeros((2, 4, 4, 1), np.float32)])["params"]["stem"]["conv"]["kernel"]
    assert np.abs(kernel).max() <= EPSILON**-0.5 + 1e-3


# ---- Dirac initialisation ----


def test_dirac_initialisation_passes_channels_on():
    model = create_model("airbench", width=WIDTH, dirac_init=True)
    plain, dirac = (
        create_model("airbench", width=WIDTH, dirac_init=on).init(jax.random.key(0), X)["params"]
        for on in (False, True)
    )
    conv = dirac["stage2"]["conv1"]["kernel"]  # (3, 3, 8, 32)
    x = seeded.normal("dirac x", (1, 5, 4, 8))
    np.testing.assert_array_equal(convolved(x, conv, 1)[..., :8], x)
    np.testing.assert_array_equal(conv[..., 8:], plain["stage2"]["conv1"]["kernel"][..., 8:])
    np.testing.assert_array_equal(dirac["stem"]["conv"]["kernel"], plain["stem"]["conv"]["kernel"])
    assert isinstance(model, Airbench)


@pytest.mark.parametrize(
    "name",
    thorough_except(
        ("resnet20", "resnet18-1-1-1-1", "resnext18-1-1-1-1", "wrn_16_4-1-1-1"), "resnet20", "resnext18-1-1-1-1"
    ),
)
def test_dirac_initialisation_of_residual_branches(name):
    """Kernels of 3x3 without groups start as the identity; all others stay as they were."""
    x = jnp.zeros((1, 33, 33, 3))
    width = 0.25 if "next" in name else WIDTH
    plain, dirac = (
        dict(seeded.leaves(create_model(name, width=width, dirac_init=on).init(jax.random.key(0), x)["params"]))
        for on in (False, True)
    )
    for path, leaf in dirac.items():
        channels, size = leaf.shape[-2:] if leaf.ndim == 4 else (0, 0)
        grouped = "next" in name and size > channels  # (3, 3, 16, C): groups of 16 channels
        if leaf.ndim == 4 and leaf.shape[:2] == (3, 3) and size >= channels and not grouped:
            identity = np.zeros((3, 3, channels, channels))
            identity[1, 1] = np.eye(channels)
            np.testing.assert_array_equal(leaf[..., :channels], identity, err_msg=path)
            np.testing.assert_array_equal(leaf[..., channels:], plain[path][..., channels:], err_msg=path)
        else:
            np.testing.assert_array_equal(leaf, plain[path], err_msg=path)


# ---- what it does not have ----


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stem": "standard"}, "stem standard: airbench has a first convolution of its own"),
        ({"zero_init": True}, "zero_init True: airbench has no residual blocks"),
        ({"squeeze_excitation": True}, "squeeze_excitation True: airbench has no residual blocks"),
        ({"stochastic_depth": 0.1}, "stochastic_depth 0.1: airbench has no residual blocks"),
        ({"remat": True}, "remat True: airbench has no residual blocks"),
        ({"batch_norm_momentum": 1.0}, "1.0 must be at least 0 and below 1"),
        ({"batch_norm_momentum": "0.9"}, "give a number"),
        ({"batch_norm_momentum": 0.5, "norm": nn.GroupNorm}, "has no momentum"),
        ({"dirac_init": 1}, "dirac_init 1: give True or False"),
        ({"width": 0.001}, "less than 1 of the 64 channels"),
    ],
)
def test_options_without_an_effect_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        create_model("airbench", **options)


def test_it_neither_grows_nor_converts():
    held = create_model("airbench", width=WIDTH).init(jax.random.key(0), X)
    with pytest.raises(ConfigError, match="airbench has no residual blocks"):
        create_model("airbench-1-1-2")
    with pytest.raises(ConfigError, match="growing: airbench has no residual blocks"):
        insert_block("airbench", held, stage=1, key=jax.random.key(0))
    with pytest.raises(InteropError, match="airbench: its weights cannot be read from PyTorch"):
        to_torch(held, "airbench")
    with pytest.raises(InteropError, match="airbench: its weights cannot be read from PyTorch"):
        from_torch({}, "airbench")


def test_images_that_are_too_small_are_refused():
    model = create_model("airbench")
    assert jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 9, 9, 1)))[0].shape == (1, 10)
    with pytest.raises(ConfigError, match="image size 9x8 is too small: 3 groups halve it; use at least 9x9"):
        model.init(jax.random.key(0), jnp.zeros((1, 9, 8, 1)))
