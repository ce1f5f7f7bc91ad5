"""Residual and ResNeXtBlock against the seed's own PyTorch code, frozen in tests/fixtures/torch_blocks.npz."""

from functools import partial

import flax_side
import jax
import numpy as np
import pytest
import seeded
from flax import linen as nn
from jax import numpy as jnp
from thorough import thorough_except

from resnet_jax import Residual, ResNeXtBlock
from resnet_jax.errors import ConfigError
from resnet_jax.models.layers import BatchNorm

ATOL = 1e-4  # of outputs and gradients of up to 50; 2e-5 is seen, and PyTorch's own float32 is off by as much
STATS_ATOL = 1e-5

FROZEN = seeded.frozen("torch_blocks")


def make(case, **fields):
    kind = Residual if case in seeded.RESIDUAL else ResNeXtBlock
    return kind(*case.arguments, **fields)


def expected(case, mode):
    prefix = f"{case.name}/{mode}/"
    return {key.removeprefix(prefix): value for key, value in FROZEN.items() if key.startswith(prefix)}


def input_of(case):
    return seeded.normal(f"{case.name} x", case.input_shape)


def apply(block, case):
    held = flax_side.variables(block, case.input_shape)
    return jax.jit(block.apply, compiler_options=flax_side.RUN_ONCE)(held, input_of(case))


by_name = pytest.mark.parametrize("case", seeded.BLOCKS, ids=lambda case: case.name)


def test_weights_are_those_of_the_frozen_numbers():
    np.testing.assert_array_equal(seeded.canary(), FROZEN["canary"])


@by_name
@pytest.mark.parametrize("mode", thorough_except(seeded.MODES, "train"))
def test_output_and_gradients_are_pytorchs(case, mode):
    theirs = expected(case, mode)
    ours = flax_side.answer(make(case), case.name, case.input_shape, theirs["output"].shape, mode)
    compared = {key for key in theirs if key.startswith(("output", "gradient/"))}
    assert compared == {key for key in ours if not key.startswith("batch_stats/")}  # the same parameters
    for key in sorted(compared):
        np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=ATOL, err_msg=key)
    if mode == "train":
        flax_side.compare_statistics(ours, theirs, STATS_ATOL)
    else:
        for path, value in seeded.leaves(flax_side.variables(make(case), case.input_shape)["batch_stats"]):
            np.testing.assert_array_equal(ours[f"batch_stats/{path}"], value, err_msg=path)


@pytest.mark.parametrize("case", seeded.RESNEXT, ids=lambda case: case.name)
def test_groups_is_the_width_of_a_group(case):
    """The seed's code, not its prose: the prose's numbers come out only when the width is bot_channels / groups."""
    num_channels, groups, bot_mul, *rest = case.arguments
    bot_channels = round(num_channels * bot_mul)
    code, prose = FROZEN[f"{case.name}/eval/output"], FROZEN[f"{case.name}/prose/output"]
    assert np.abs(code - prose).max() > 1000 * ATOL
    np.testing.assert_allclose(apply(make(case), case), code, rtol=0, atol=ATOL)
    other = ResNeXtBlock(num_channels, bot_channels // groups, bot_mul, *rest)
    np.testing.assert_allclose(apply(other, case), prose, rtol=0, atol=ATOL)


def plain_conv(features, kernel_size, strides=1, *, padding=0, groups=1, name, same=False):
    """Flax's own convolution in place of ours."""
    how = "SAME" if same else padding
    return nn.Conv(features, kernel_size, strides, padding=how, feature_group_count=groups, name=name)


HALVING = [case for case in seeded.BLOCKS if "halving" in case.name]


@pytest.mark.parametrize("case", HALVING, ids=lambda case: case.name)
def test_another_convolution_can_be_put_in(case):
    np.testing.assert_allclose(
        apply(make(case, conv=plain_conv), case), expected(case, "eval")["output"], rtol=0, atol=ATOL
    )


@pytest.mark.parametrize("case", HALVING, ids=lambda case: case.name)
def test_frozen_numbers_tell_explicit_padding_from_same(case):
    """At even sizes "SAME" pads (0, 1); at odd ones it pads (1, 1), as PyTorch does at all."""
    off = np.abs(apply(make(case, conv=partial(plain_conv, same=True)), case) - expected(case, "eval")["output"])
    if "odd" in case.name:
        assert off.max() < ATOL
    else:
        assert off.max() > 1000 * ATOL


@pytest.mark.parametrize(
    ("block", "input_shape", "output_shape"),
    [
        (Residual(3), (4, 6, 6, 3), (4, 6, 6, 3)),  # the seed's two cells
        (Residual(6, use_1x1conv=True, strides=2), (4, 6, 6, 3), (4, 3, 3, 6)),
        (Residual(6, use_1x1conv=True, strides=2), (4, 7, 9, 3), (4, 4, 5, 6)),
        (ResNeXtBlock(32, 16, 1), (4, 96, 96, 32), (4, 96, 96, 32)),
        (ResNeXtBlock(10, 1, 0.25, use_1x1conv=True), (1, 4, 4, 3), (1, 4, 4, 10)),
    ],
)
def test_shapes(block, input_shape, output_shape):
    output, _ = jax.eval_shape(block.init_with_output, jax.random.key(0), jnp.zeros(input_shape))
    assert output.shape == output_shape
    assert output.dtype == jnp.float32


@pytest.mark.parametrize(
    ("num_channels", "bot_mul", "bottleneck"), [(10, 0.25, 2), (14, 0.25, 4), (10, 0.26, 3), (8, 2, 16)]
)
def test_bottleneck_is_rounded_as_python_rounds(num_channels, bot_mul, bottleneck):
    """int(round(2.5)) is 2 and int(round(3.5)) is 4: half goes to even, in the seed too."""
    block = ResNeXtBlock(num_channels, 1, bot_mul, use_1x1conv=True)
    params = jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
    assert params["conv1"]["kernel"].shape == (1, 1, 3, bottleneck)
    assert params["conv2"]["kernel"].shape == (3, 3, 1, bottleneck)


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (Residual(8), ["num_channels 8", "3 channels", "use_1x1conv"]),
        (Residual(3, strides=2), ["strides 2", "use_1x1conv"]),
        (ResNeXtBlock(8, 4, 1), ["num_channels 8", "3 channels"]),
        (ResNeXtBlock(3, 1, 1, strides=2), ["strides 2"]),
        (ResNeXtBlock(32, 5, 1, use_1x1conv=True), ["groups 5", "32"]),
        (ResNeXtBlock(32, 64, 1, use_1x1conv=True), ["groups 64", "32"]),
        (ResNeXtBlock(32, 0, 1, use_1x1conv=True), ["groups 0"]),
        (ResNeXtBlock(32, -16, 1, use_1x1conv=True), ["groups -16"]),
        (ResNeXtBlock(2, 1, 0.1, use_1x1conv=True), ["bot_mul 0.1"]),
    ],
)
def test_bad_arguments_are_told_in_one_line(block, says):
    with pytest.raises(ConfigError) as error:
        jax.eval_shape(block.init, jax.random.key(0), jnp.zeros((1, 6, 6, 3)))
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in says), message


CASE = seeded.RESIDUAL[-1]  # halving, odd


def test_eager_jit_and_python_keyword_agree():
    block, x = make(CASE), input_of(CASE)
    held = flax_side.variables(block, CASE.input_shape)
    np.testing.assert_allclose(flax_side.apply(block, held, x), apply(block, CASE), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(block.apply(held, x), block.apply(held, x, train=False))


@pytest.mark.parametrize("case", [CASE, seeded.RESNEXT[-1]], ids=lambda case: case.name)
def test_vmap_over_weights_is_a_loop_over_them(case):
    """An ensemble of two: in train mode each member has its own statistics."""
    block, x = make(case), input_of(case)
    first = flax_side.variables(block, case.input_shape)
    members = [first, jax.tree.map(lambda leaf: 0.7 * leaf, first)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)

    def run(held):
        return block.apply(held, x, train=True, mutable=["batch_stats"])

    together, alone = jax.jit(jax.vmap(run))(stacked), [jax.jit(run)(member) for member in members]
    assert np.abs(alone[0][0] - alone[1][0]).max() > 0.01
    for a, *b in zip(jax.tree.leaves(together), *map(jax.tree.leaves, alone), strict=True):
        np.testing.assert_allclose(a, np.stack(b), rtol=0, atol=1e-5)


def test_gradient_of_each_image_adds_up_to_the_batchs():
    """vmap(grad) in eval mode, where no image sees another."""
    block, x = make(CASE), input_of(CASE)
    held = flax_side.variables(block, CASE.input_shape)
    noise = seeded.normal("noise", expected(CASE, "eval")["output"].shape)

    def loss(params, x, noise):
        y = block.apply({"params": params, "batch_stats": held["batch_stats"]}, x[None])
        return jnp.sum(y[0] * noise)

    one_by_one = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(held["params"], x, noise)
    _, _, whole, _ = jax.jit(flax_side.answer_function(block, "eval"))(held, x, noise)
    for a, b in zip(jax.tree.leaves(one_by_one), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a.sum(0), b, rtol=0, atol=ATOL)


DEVICES = 8


def one_device_and_eight(norm):
    """(answer of one device with the whole batch, of 8 with an eighth each): output, gradients, statistics."""
    block = Residual(4, use_1x1conv=True, strides=2, norm=norm)
    alone = Residual(4, use_1x1conv=True, strides=2)
    x = seeded.normal("x", (2 * DEVICES, 6, 6, 3)) + np.arange(2 * DEVICES).reshape(-1, 1, 1, 1) / 4
    noise = seeded.normal("noise", (2 * DEVICES, 3, 3, 4))
    held = flax_side.variables(alone, x.shape)
    output, stats, params, dx = jax.jit(flax_side.answer_function(alone, "train"))(held, x, noise)

    def share(held, x, noise):
        output, stats, params, dx = flax_side.answer_function(block, "train")(held, x, noise)
        return output, stats, jax.lax.psum(params, "batch"), dx

    split = [a.reshape(DEVICES, 2, *a.shape[1:]) for a in (x, noise)]
    eight = jax.pmap(share, axis_name="batch", in_axes=(None, 0, 0))(held, *split)
    return (output, stats, params, dx), jax.device_get(eight)


def test_cross_replica_batch_norm_is_one_device_with_the_whole_batch():
    assert jax.device_count() == DEVICES
    (output, stats, params, dx), eight = one_device_and_eight(partial(BatchNorm, axis_name="batch"))
    np.testing.assert_allclose(eight[0].reshape(output.shape), output, rtol=0, atol=ATOL)
    np.testing.assert_allclose(eight[3].reshape(dx.shape), dx, rtol=0, atol=ATOL)
    for one, of_eight in ((stats, eight[1]), (params, eight[2])):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(of_eight), strict=True):
            np.testing.assert_allclose(b, np.broadcast_to(a, b.shape), rtol=0, atol=ATOL)


def test_without_an_axis_name_each_device_has_its_own_statistics():
    (output, stats, *_), eight = one_device_and_eight(BatchNorm)
    assert np.abs(eight[0].reshape(output.shape) - output).max() > 0.1
    for path, a in seeded.leaves(eight[1]):
        assert np.ptp(a, axis=0).max() > 0.01, path  # the devices differ
    means = dict(seeded.leaves(eight[1]))["bn1/mean"]  # of linear parts the average is the whole batch's
    np.testing.assert_allclose(means.mean(0), stats["bn1"]["mean"], rtol=0, atol=1e-5)
