"""Other norms and activations: against a network in plain Flax with the same parameters, and fused against composed."""

import pickle
from collections.abc import Callable
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
from resnet_jax import ResNet, create_model, ops
from resnet_jax.errors import ConfigError
from resnet_jax.models import BasicBlock, BatchNorm, BottleneckBlock, Conv, PreActBlock, Residual, ResNeXtBlock
from resnet_jax.models.layers import relu, stride_pair

ARCH = ((1, 8), (1, 16))
SHAPE = (2, 12, 12, 3)
GROUPS = partial(nn.GroupNorm, num_groups=4)


def plain_conv(features, side, strides, name):
    pad = (side // 2, side // 2)
    return nn.Conv(features, (side, side), strides, padding=(pad, pad), name=name)


class FlaxBlock(nn.Module):
    """Residual in Flax's own layers."""

    features: int
    strides: int
    norm: Callable[..., Any]
    act: Callable[..., Any]

    @nn.compact
    def __call__(self, x, train):
        y = self.act(self.norm(train, "bn1")(plain_conv(self.features, 3, self.strides, "conv1")(x)))
        y = self.norm(train, "bn2")(plain_conv(self.features, 3, 1, "conv2")(y))
        if self.strides != 1:
            x = plain_conv(self.features, 1, self.strides, "conv3")(x)
        return self.act(y + x)


class FlaxStem(nn.Module):
    norm: Callable[..., Any]
    act: Callable[..., Any]

    @nn.compact
    def __call__(self, x, train):
        y = self.act(self.norm(train, "bn")(plain_conv(8, 7, 2, "conv")(x)))
        return nn.max_pool(jnp.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf), (3, 3), (2, 2))


class FlaxStage(nn.Module):
    features: int
    strides: int
    norm: Callable[..., Any]
    act: Callable[..., Any]

    @nn.compact
    def __call__(self, x, train):
        return FlaxBlock(self.features, self.strides, self.norm, self.act, name="block1")(x, train)


class FlaxNet(nn.Module):
    """ResNet(ARCH, stem_channels=8) in Flax's own layers; norm: (train, name) -> module."""

    norm: Callable[..., Any]
    act: Callable[..., Any]

    @nn.compact
    def __call__(self, x, train=False):
        x = FlaxStem(self.norm, self.act, name="stem")(x, train)
        for i, (_, features) in enumerate(ARCH):
            x = FlaxStage(features, 2 if i else 1, self.norm, self.act, name=f"stage{i + 1}")(x, train)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


def flax_batch_norm(train, name):
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)


# ours: the norm and the activation of ResNet; theirs: the same for FlaxNet
PAIRS = {
    "group": (GROUPS, relu, lambda train, name: nn.GroupNorm(num_groups=4, name=name), nn.relu),
    "layer gelu": (nn.LayerNorm, nn.gelu, lambda train, name: nn.LayerNorm(name=name), nn.gelu),
    "flax batch": (partial(nn.BatchNorm, momentum=0.9), nn.relu, flax_batch_norm, nn.relu),
    "ours": (BatchNorm, relu, flax_batch_norm, nn.relu),
    "ours gelu": (BatchNorm, nn.gelu, flax_batch_norm, nn.gelu),
}


@pytest.mark.parametrize("mode", thorough_except(seeded.MODES, "train"))
@pytest.mark.parametrize("name", thorough_except(PAIRS, "group", "ours gelu"))
def test_a_network_is_the_same_in_flaxs_own_layers(name, mode):
    norm, act, flax_norm, flax_act = PAIRS[name]
    ours = ResNet(ARCH, stem_channels=8, norm=norm, act=act)
    theirs = FlaxNet(flax_norm, flax_act)
    shapes = [jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(SHAPE)) for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    mine, reference = (flax_side.answer(model, name, SHAPE, (2, 10), mode) for model in (ours, theirs))
    assert mine.keys() == reference.keys()
    for key, value in reference.items():
        atol = 2e-5 * max(1, np.abs(value).max())
        np.testing.assert_allclose(mine[key], value, rtol=0, atol=atol, err_msg=key)


@pytest.mark.thorough
def test_group_norm_trains():
    model = ResNet(ARCH, 3, stem="small", stem_channels=8, norm=GROUPS)
    x, y = jnp.asarray(seeded.normal("train", (8, 8, 8, 3))), jnp.arange(8) % 3
    params = model.init(jax.random.key(0), x)["params"]

    @jax.jit
    def step(params):
        def loss(params):
            logits = flax_side.apply(model, {"params": params}, x, train=True)
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient), value

    losses = []
    for _ in range(20):
        params, value = step(params)
        losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]


BLOCKS = {
    "residual": (Residual, {"num_channels": 8}),
    "resnext": (ResNeXtBlock, {"num_channels": 8, "groups": 4, "bot_mul": 1}),
    "basic": (BasicBlock, {"num_channels": 8}),
    "bottleneck": (BottleneckBlock, {"num_channels": 8, "bot_mul": 0.5}),
    "preact": (PreActBlock, {"num_channels": 8}),
}


def composed_relu(x):
    """ReLU by another name, so that norm_act cannot fuse it."""
    return jax.nn.relu(x)


@pytest.mark.parametrize("mode", thorough_except(seeded.MODES, "train"))
@pytest.mark.parametrize("name", thorough_except(BLOCKS, "residual", "preact"))
def test_fused_and_composed_agree(name, mode):
    block, arguments = BLOCKS[name]
    answers = [
        flax_side.answer(block(**arguments, use_1x1conv=True, act=act), name, (2, 6, 6, 4), (2, 6, 6, 8), mode)
        for act in (relu, nn.relu, composed_relu)
    ]
    for key, value in answers[2].items():
        np.testing.assert_array_equal(answers[0][key], answers[1][key], err_msg=key)
        atol = 1e-5 * max(1, np.abs(value).max())
        np.testing.assert_allclose(answers[0][key], value, rtol=0, atol=atol, err_msg=key)


@pytest.mark.parametrize("act", [relu, nn.relu], ids=["ours", "flax"])
def test_the_fused_operation_is_used_for_batch_norm_and_relu_only(act, monkeypatch):
    calls = []
    fused = ops.batch_norm

    def record(*operands, relu=False, residual=None, **how):
        calls.append((relu, residual is not None))
        return fused(*operands, relu=relu, residual=residual, **how)

    monkeypatch.setattr(ops, "batch_norm", record)

    def called(block):
        calls.clear()
        jax.eval_shape(partial(block.init, train=True), jax.random.key(0), jnp.zeros((2, 4, 4, 8)))
        return list(calls)

    assert called(Residual(8, act=act)) == [(True, False), (True, True)]
    assert called(Residual(8, act=act, norm=partial(partial(BatchNorm, momentum=0.5), epsilon=1e-3))) == [
        (True, False),
        (True, True),
    ]
    assert called(Residual(8, act=nn.gelu)) == [(False, False), (False, False)]
    assert called(Residual(8, act=act, norm=GROUPS)) == []


def test_a_bound_option_wins():
    """Frozen statistics: a training step neither uses nor changes the batch's."""
    block = Residual(8, norm=partial(BatchNorm, use_running_average=True))
    x = seeded.normal("frozen", (2, 4, 4, 8))
    held = flax_side.variables(block, x.shape)
    y, new = flax_side.apply(block, held, x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, block.apply(held, x))
    jax.tree.map(np.testing.assert_array_equal, new["batch_stats"], held["batch_stats"])


def test_the_axis_is_bound_to_batch_norms_only():
    """Flax's GroupNorm with an axis_name would average over devices: evaluation outside pmap would raise."""
    x = seeded.normal("axis", SHAPE)
    for norm in (GROUPS, nn.LayerNorm):
        model = ResNet(ARCH, stem_channels=8, norm=norm, axis_name="batch")
        held = flax_side.variables(model, SHAPE)
        assert np.isfinite(flax_side.apply(model, held, x, train=True)).all()
    model = ResNet(ARCH, stem_channels=8, norm=nn.BatchNorm, axis_name="batch")
    held = flax_side.variables(model, SHAPE)
    with pytest.raises(NameError, match="batch"):
        jax.eval_shape(lambda: model.apply(held, x, train=True, mutable=["batch_stats"]))


def test_zero_init_of_another_norm():
    block = Residual(8, norm=GROUPS, zero_init=True)
    x = jnp.abs(jnp.asarray(seeded.normal("zero", (2, 4, 4, 8))))
    np.testing.assert_array_equal(block.apply(block.init(jax.random.key(0), x), x), x)
    nothing = Residual(8, norm=lambda name: lambda x: x, zero_init=True)
    with pytest.raises(ConfigError, match=r"zero_init=True.*no scale_init.*zero_init=False"):
        nothing.init(jax.random.key(0), x)
    without = Residual(8, norm=lambda name: lambda x: x)
    assert set(without.init(jax.random.key(0), x)["params"]) == {"conv1", "conv2"}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wrn_16_4", "resnet20"])
def test_models_can_be_pickled(name):
    model = create_model(name, 3)
    assert repr(pickle.loads(pickle.dumps(model))) == repr(model)  # partials are equal only to themselves


@pytest.mark.parametrize("name", thorough_except(BLOCKS, "residual"))
def test_a_block_takes_bfloat16(name):
    """The default layers compute in float32 and return it, in training as in evaluation."""
    block, arguments = BLOCKS[name]
    for options in ({}, {"squeeze_excitation": True}, {"act": nn.gelu}):
        module = block(**arguments, **options)
        x = seeded.normal("bfloat16", (2, 6, 6, 8))
        held = flax_side.variables(module, x.shape)
        rounded = jnp.asarray(x, jnp.bfloat16)
        for train in (False, True):
            run = jax.jit(partial(flax_side.apply, module, train=train, mutable=["batch_stats"]))
            low, full = run(held, rounded)[0], run(held, rounded.astype(jnp.float32))[0]
            assert low.dtype == jnp.float32
            np.testing.assert_array_equal(low, full)


def test_a_block_computes_in_bfloat16_on_request():
    half = {"conv": partial(Conv, dtype=jnp.bfloat16), "norm": partial(BatchNorm, dtype=jnp.bfloat16)}
    block, x = Residual(8, **half), seeded.normal("half", (2, 6, 6, 8))
    held = flax_side.variables(block, x.shape)
    for train in (False, True):
        y, _ = flax_side.apply(block, held, x, train=train, mutable=["batch_stats"])
        full, _ = flax_side.apply(Residual(8), held, x, train=train, mutable=["batch_stats"])
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(y, np.float32), full, atol=0.1)


@pytest.mark.parametrize("name", BLOCKS)
def test_strides_are_one_number_or_a_pair(name):
    block, arguments = BLOCKS[name]
    x = seeded.normal("strides", (2, 7, 6, 4))
    one = block(**arguments, use_1x1conv=True, strides=2)
    held = flax_side.variables(one, x.shape)
    np.testing.assert_array_equal(
        block(**arguments, use_1x1conv=True, strides=(2, 2)).apply(held, x), one.apply(held, x)
    )
    other = block(**arguments, use_1x1conv=True, strides=(2, 1))
    assert flax_side.apply(other, held, x).shape == (2, 4, 6, 8)
    same = block(**arguments, strides=(1, 1))
    with pytest.raises(ConfigError, match=r"num_channels 8 must equal"):
        same.init(jax.random.key(0), x)


def test_strides_of_a_padded_shortcut():
    x = seeded.normal("strides", (2, 7, 6, 4))
    block = BasicBlock(8, True, (2, 1), pad_shortcut=True)
    assert flax_side.apply(block, flax_side.variables(block, x.shape), x).shape == (2, 4, 6, 8)


@pytest.mark.parametrize("strides", [0, -1, (2,), (2, 0), (1, 2, 3), 1.5, "2", None])
def test_invalid_strides(strides):
    with pytest.raises(ConfigError, match=r"strides .*: use a positive int, such as 2, or a pair"):
        stride_pair(strides)


def test_growing_needs_batch_norm_and_a_head():
    def variables(**options):
        shapes = jax.eval_shape(create_model("resnet20", **options).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

    for grow in (resnet_jax.insert_block, partial(resnet_jax.widen, channels=32)):
        with pytest.raises(ConfigError, match=r"without batch_stats.*batch norm"):
            grow("resnet20", variables(norm=GROUPS), stage=1, key=jax.random.key(0))
        with pytest.raises(ConfigError, match="without params/head"):
            grow("resnet20", variables(num_classes=0), stage=1, key=jax.random.key(0))
