"""Whole networks against the seed's own PyTorch code, frozen in tests/fixtures/torch_nets.npz."""

import itertools
from functools import partial

import flax_side
import jax
import numpy as np
import optax
import pytest
import seeded
from jax import numpy as jnp
from thorough import thorough_except

from resnet_jax import ResNet, ResNet18, ResNeXtBlock, create_model
from resnet_jax.errors import ConfigError

ATOL = 1e-4 * flax_side.SLACK  # of logits; of gradients it is relative to the leaf's norm, where that is above 1
STATS_ATOL = 1e-5

FROZEN = seeded.frozen("torch_nets")
SMALL = ResNet(((1, 64), (2, 32)), block=partial(ResNeXtBlock, groups=16, bot_mul=1))


def make(case):
    return SMALL if case.group_width else ResNet(case.arch)


# the training of resnet18: test_sgd_goes_down_pytorchs_losses
KEPT = (("resnet18_28", "eval"), ("resnext_small", "train"))
CASES = list(itertools.product(seeded.NETS, seeded.MODES))


@pytest.mark.parametrize(
    ("case", "mode"),
    thorough_except(CASES, *(case for case in CASES if (case[0].name, case[1]) in KEPT)),
    ids=lambda value: getattr(value, "name", value),
)
def test_network_is_pytorchs(case, mode):
    """Logits, running statistics and, through fingerprints, the gradient of every parameter."""
    prefix = f"{case.name}/{mode}/"
    theirs = {key.removeprefix(prefix): value for key, value in FROZEN.items() if key.startswith(prefix)}
    ours = flax_side.answer(make(case), case.name, case.input_shape, theirs["output"].shape, mode)
    np.testing.assert_allclose(ours["output"], theirs["output"], rtol=0, atol=ATOL)
    gradients = {key for key in theirs if key.startswith("gradient/")}
    assert gradients == {key for key in ours if key.startswith("gradient/")}  # the same parameters
    for key in sorted(gradients):
        mine = seeded.fingerprint(key.removeprefix("gradient/"), ours[key])
        atol = ATOL * max(1, theirs[key][0])
        print(key, np.abs(mine - theirs[key]).max() / max(1, theirs[key][0]))
        np.testing.assert_allclose(mine, theirs[key], rtol=0, atol=atol, err_msg=key)
    if mode == "train":
        flax_side.compare_statistics(ours, theirs, STATS_ATOL)


def test_sgd_goes_down_pytorchs_losses():
    """optax.sgd and jax.grad, five steps of the seed's learning rate from the same weights."""
    model = ResNet18()
    x, y = seeded.sgd_batch()
    start = flax_side.variables(model, x.shape)
    optimizer = optax.sgd(seeded.SGD_RATE)

    @partial(jax.jit, compiler_options={"xla_llvm_disable_expensive_passes": True})
    def step(params, stats, opt_state):
        def loss(params):
            logits, new = model.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new["batch_stats"]

        (value, stats_), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(params, updates), stats_, opt_state, value

    params, stats, losses = start["params"], start["batch_stats"], []
    opt_state = optimizer.init(params)
    for _ in range(seeded.SGD_STEPS):
        params, stats, opt_state, loss = step(params, stats, opt_state)
        losses.append(float(loss))
    np.testing.assert_allclose(losses, FROZEN["sgd/losses"], rtol=0, atol=ATOL)
    before = dict(seeded.leaves(start["params"]))
    for path, leaf in seeded.leaves(jax.device_get(params)):
        theirs = FROZEN[f"sgd/moved/{path}"]
        mine = seeded.fingerprint(path, leaf - before[path])
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=ATOL * max(1, theirs[0]), err_msg=path)


@pytest.mark.parametrize("stem", ["standard", "small"])
@pytest.mark.parametrize("size", [(96, 96), (28, 28), (33, 35), (17, 40)])
def test_stage_shapes(stem, size):
    """Every halving rounds up, as PyTorch's do; the last stage of the chapter's images is 3x3x512."""
    model = ResNet18(stem=stem)
    shapes = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, *size, 1)), capture_intermediates=True)
    )
    seen = {key: value["__call__"][0].shape for key, value in shapes[1]["intermediates"].items() if key != "__call__"}
    h, w = size if stem == "small" else ((n + 3) // 4 for n in size)
    wanted = {"stem": (2, h, w, 64)}
    for i, (_, channels) in enumerate(seeded.RESNET18):
        h, w = (h, w) if i == 0 else ((h + 1) // 2, (w + 1) // 2)
        wanted[f"stage{i + 1}"] = (2, h, w, channels)
    assert seen == wanted | {"head": (2, 10)}
    if size == (96, 96) and stem == "standard":
        assert seen["stage4"] == (2, 3, 3, 512)


def smallest(halvings):
    """The least size of which no stage halves a single pixel, by trying all of them."""

    def fits(n):
        for _ in range(halvings):
            if n == 1:
                return False
            n = (n + 1) // 2
        return True

    return next(n for n in itertools.count(1) if fits(n))


@pytest.mark.parametrize(("stem", "stages", "halvings"), [("standard", 4, 5), ("small", 4, 3), ("standard", 1, 2)])
def test_an_image_too_small_is_told_in_one_line(stem, stages, halvings):
    model = ResNet(((1, 64),) * stages, stem=stem)
    least = smallest(halvings)

    def shape(height, width):
        x = jnp.zeros((1, height, width, 3))
        return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x))[0].shape

    assert shape(least, least) == (1, 10)
    for height, width in ((least - 1, least - 1), (least, least - 1), (least - 1, 200)):
        with pytest.raises(ConfigError, match=rf"{height}x{width}.*{least}x{least}") as error:
            shape(height, width)
        assert "\n" not in str(error.value)


def test_an_unknown_stem_is_told_in_one_line():
    with pytest.raises(ConfigError, match=r"unknown stem 'smal'.*did you mean small") as error:
        jax.eval_shape(ResNet18(stem="smal").init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    assert "\n" not in str(error.value)


SHAPE = (4, 33, 35, 3)


@pytest.mark.parametrize("mode", thorough_except(seeded.MODES, "train"))
def test_bfloat16_computes_in_bfloat16_and_keeps_the_rest_in_float32(mode):
    """Logits and statistics stay near float32's, gradients point the same way.

    No nearer: images that differ by 0.4 %, as much as bfloat16 rounds off, turn PyTorch's float32 gradients of
    this network by 20 %, and its autocast turns them by 24 %.
    """
    low = ResNet(SMALL.arch, block=SMALL.block, dtype=jnp.bfloat16)
    held = flax_side.variables(low, SHAPE)
    x, noise = seeded.normal("x", SHAPE), seeded.loss_weights("x", (SHAPE[0], 10))
    # a TPU's program, since a CPU's may compute in float32 and round
    program = jax.export.export(jax.jit(flax_side.answer_function(low, mode)), platforms=["tpu"])(held, x, noise)
    convolutions = [line for line in program.mlir_module().splitlines() if "stablehlo.convolution" in line]
    assert convolutions
    assert all("xbf16>" in line and "xf32>" not in line for line in convolutions), convolutions
    rough = flax_side.answer(low, "x", SHAPE, (SHAPE[0], 10), mode)
    exact = flax_side.answer(SMALL, "x", SHAPE, (SHAPE[0], 10), mode)
    assert np.abs(rough["output"] - exact["output"]).max() > 1e-4  # it does round
    np.testing.assert_allclose(rough["output"], exact["output"], rtol=0, atol=0.03)
    for key, value in exact.items():
        assert rough[key].dtype == np.float32, key
        if key.startswith("batch_stats/"):
            np.testing.assert_allclose(rough[key], value, rtol=0, atol=2e-3, err_msg=key)
        elif key.endswith("kernel"):
            assert np.sum(rough[key] * value) > 0.9 * np.linalg.norm(rough[key]) * np.linalg.norm(value), key


def test_init_in_bfloat16_is_init_in_float32():
    """Parameters and batch statistics are float32 from the start, and the same numbers."""
    low = ResNet(((1, 64),), dtype=jnp.bfloat16)
    x = jnp.zeros((1, 8, 8, 1))
    mine, full = (
        jax.jit(model.init, compiler_options=flax_side.RUN_ONCE)(jax.random.key(0), x)
        for model in (low, ResNet(((1, 64),)))
    )
    for (path, a), (_, b) in zip(seeded.leaves(mine), seeded.leaves(full), strict=True):
        assert a.dtype == jnp.float32, path
        np.testing.assert_array_equal(a, b, err_msg=path)


DEVICES = 8


ARCH, BATCH_SHAPE = ((1, 64), (1, 32)), (2 * DEVICES, 12, 12, 1)


@pytest.fixture(scope="module")
def one():
    """One device with the whole batch: logits, statistics, gradients of the parameters."""
    model = ResNet(ARCH)
    held = flax_side.variables(model, BATCH_SHAPE)
    x, noise = seeded.normal("x", BATCH_SHAPE), seeded.loss_weights("x", (BATCH_SHAPE[0], 10))
    return jax.jit(flax_side.answer_function(model, "train"))(held, x, noise)[:3]


def eight_devices(axis_name):
    """The same for eight devices with a share each."""
    shared = ResNet(ARCH, axis_name=axis_name)
    held = flax_side.variables(shared, BATCH_SHAPE)
    x, noise = seeded.normal("x", BATCH_SHAPE), seeded.loss_weights("x", (BATCH_SHAPE[0], 10))

    def share(held, x, noise):
        output, stats, gradient, _ = flax_side.answer_function(shared, "train")(held, x, noise)
        return output, stats, jax.lax.psum(gradient, "batch")

    split = [a.reshape(DEVICES, 2, *a.shape[1:]) for a in (x, noise)]
    output, *rest = jax.device_get(jax.pmap(share, axis_name="batch", in_axes=(None, 0, 0))(held, *split))
    return (output.reshape(BATCH_SHAPE[0], -1), *rest)


def test_eight_devices_with_an_axis_name_are_one_with_the_whole_batch(one):
    assert jax.device_count() == DEVICES
    eight = eight_devices("batch")
    np.testing.assert_allclose(eight[0], one[0], rtol=0, atol=ATOL)
    for a, b in zip(one[1:], eight[1:], strict=True):
        for (path, leaf), (_, of_eight) in zip(seeded.leaves(a), seeded.leaves(b), strict=True):
            np.testing.assert_allclose(of_eight, np.stack([leaf] * DEVICES), rtol=0, atol=ATOL, err_msg=path)


def test_eight_devices_without_an_axis_name_are_not(one):
    eight = eight_devices(None)
    assert np.abs(eight[0] - one[0]).max() > 0.1
    for path, leaf in seeded.leaves(eight[1]):
        assert np.ptp(leaf, axis=0).max() > 1e-3, path


def test_an_axis_name_is_needed_in_training_alone():
    """init and evaluation run outside pmap; a training step there says that the axis is not bound."""
    model, x = ResNet(((1, 64),), axis_name="batch"), seeded.normal("x", (2, 8, 8, 1))
    held = flax_side.variables(model, x.shape)
    np.testing.assert_array_equal(model.apply(held, x), ResNet(((1, 64),)).apply(held, x))
    with pytest.raises(NameError, match="batch"):
        jax.eval_shape(lambda: model.apply(held, x, train=True, mutable=["batch_stats"]))


def test_create_model_gives_this_network():
    """By value: modules are dataclasses."""
    assert create_model("resnet18") == ResNet18() == ResNet(num_classes=10)
    assert create_model("resnet18", 7, stem="small", dtype=jnp.bfloat16, axis_name="batch") == ResNet(
        num_classes=7, stem="small", dtype=jnp.bfloat16, axis_name="batch"
    )
