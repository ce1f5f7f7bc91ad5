"""Sharpness-aware minimisation and accumulation: against steps by hand, and against plain steps."""

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp
from made import NETS, assert_trees_close, make_splits
from quadratic import RATE, START, batches, gradient, half_square, new_state, trained
from thorough import thorough_except

from resnet_jax import create_state, ops, train_step
from resnet_jax.errors import ConfigError
from resnet_jax.models import create_model
from resnet_jax.training.state import everything_but_head
from resnet_jax.training.step import split_batch
from resnet_jax.training.trainer import check_batch

RHO = 0.3


def test_sam_takes_the_gradient_of_the_moved_weights():
    """arXiv:2010.01412, equation 2. The statistics are updated once a step; metrics are those of the weights."""
    data, w, mean = batches(5), START, 0.0
    step, state = jax.jit(train_step), new_state(sam=RHO)
    for x, y in data:
        loss = half_square(jnp.asarray(w * x[:, None]), jnp.asarray(y)).sum()
        g = gradient(w, x, y)
        w = w - RATE * gradient(w + RHO * g / np.linalg.norm(g), x, y)
        mean = mean / 2 + x.mean() / 2
        state, metrics = step(state, (x.reshape(-1, 1, 1, 1), y))
        np.testing.assert_allclose(state.params["w"], w, 1e-5)
        np.testing.assert_allclose(state.batch_stats["mean"], mean, 1e-5)
        np.testing.assert_allclose(metrics.loss, loss, 1e-5)


def test_the_statistics_of_sam_are_those_of_its_second_pass():
    """Of the moved weights, in one update: as a model does that is applied to them once."""
    model, (images, labels) = create_model(NETS[0], 4), batch()
    state = create_state(model, optax.sgd(RATE), (8, 8, 1), sam=RHO)

    def loss(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new["batch_stats"]

    grads, _ = jax.grad(loss, has_aux=True)(state.params)
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(grads)))
    moved = jax.tree.map(lambda p, g: p + RHO * g / norm, state.params, grads)
    grads, stats = jax.grad(loss, has_aux=True)(moved)
    new, _ = jax.jit(train_step)(state, (images, labels))
    assert_trees_close(new.batch_stats, stats, 1e-4, 2e-5)
    assert_trees_close(new.params, jax.tree.map(lambda p, g: p - RATE * g, state.params, grads), 1e-4, 2e-5)


def test_sam_at_a_minimum_stays_there():
    """The norm of the gradient is 0."""
    x, y = np.ones(4, np.float32), np.ones(4, np.int64)
    state = new_state(sam=RHO)
    state = state.replace(params={"w": jnp.ones(2)})
    np.testing.assert_array_equal(trained(state, [(x, y)])[0].params["w"], np.ones(2))


@pytest.mark.parametrize(
    "options",
    thorough_except([{"sam": RHO}, {"accumulate": 2}, {"sam": RHO, "accumulate": 2}], {"sam": RHO, "accumulate": 2}),
    ids=str,
)
def test_the_number_of_devices_does_not_matter(options):
    """The ascent follows the gradient of the whole batch, not that of a device's share."""
    data = batches(3, size=8)
    alone = trained(new_state(**options), data)[-1]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("devices",))
    whole, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("devices")
    step = jax.jit(jax.shard_map(train_step, mesh=mesh, in_specs=(whole, split), out_specs=whole))
    state = new_state(**options)
    for x, y in data:
        state, _ = step(state, (x.reshape(-1, 1, 1, 1), y))
    np.testing.assert_allclose(state.params["w"], alone.params["w"], 1e-5)


def batch(count: int = 12):
    """Images in [0, 1] and labels of the made data set."""
    images, labels = (jnp.asarray(x[:count]) for x in make_splits().train)
    return images.astype(jnp.float32) / 255, labels


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_add_up_to_the_batch_where_nothing_depends_on_the_other_images(parts):
    """The quadratic, whose statistics do not change its output: weights and metrics."""
    data = batches(4, size=8)
    step, state, other = jax.jit(train_step), new_state(), new_state(accumulate=parts)
    for x, y in data:
        state, metrics = step(state, (x.reshape(-1, 1, 1, 1), y))
        other, sums = step(other, (x.reshape(-1, 1, 1, 1), y))
        np.testing.assert_allclose(other.params["w"], state.params["w"], 1e-6)
        assert_trees_close(sums, metrics, 1e-6, 0)
    assert other.step == state.step


@pytest.mark.thorough
def test_parts_add_up_to_the_batch_with_batch_norm_in_evaluation_mode():
    """A network of which the head alone is trained."""
    model = create_model(NETS[0], 4)
    states = []
    for parts in (1, 3):
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
        freeze = everything_but_head(shapes)
        state = create_state(model, optax.sgd(RATE), (8, 8, 1), freeze=freeze, accumulate=parts)
        states.append(jax.device_get(jax.jit(train_step)(state, batch())[0]))
    assert_trees_close(states[1].params, states[0].params, 1e-5, 1e-6)
    jax.tree.map(np.testing.assert_array_equal, states[1].batch_stats, states[0].batch_stats)


def test_each_part_has_its_own_batch_statistics():
    """The gradient is the mean of those of the parts; the running statistics hear of one part after the other."""
    model, (images, labels) = create_model(NETS[0], 4), batch()
    state = create_state(model, optax.sgd(RATE), (8, 8, 1), accumulate=3)
    stats, grads = state.batch_stats, []
    for part in range(3):
        alone = create_state(model, optax.sgd(RATE), (8, 8, 1)).replace(batch_stats=stats)
        new, _ = jax.jit(train_step)(alone, (images[part::3], labels[part::3]))
        stats = new.batch_stats
        grads.append(jax.tree.map(lambda old, new: (old - new) / RATE, alone.params, new.params))
    new, _ = jax.jit(train_step)(state, (images, labels))
    mean = jax.tree.map(lambda *g: sum(g) / 3, *grads)
    assert_trees_close(new.params, jax.tree.map(lambda p, g: p - RATE * g, state.params, mean), 1e-4, 2e-5)
    assert_trees_close(new.batch_stats, stats, 1e-5, 1e-6)


def test_a_part_has_the_same_images_on_any_number_of_devices():
    images = labels = jnp.arange(16)
    whole, *_ = split_batch(2, images, labels, jax.random.key(0))
    shares = [split_batch(2, images[first : first + 4], labels, jax.random.key(0))[0] for first in (0, 4, 8, 12)]
    for part in range(2):
        assert set(np.concatenate([share[part] for share in shares]).tolist()) == set(whole[part].tolist())


def test_on_a_cpu_no_convolution_is_inside_a_loop():
    """XLA:CPU runs it many times slower there. Every part has its own convolutions, not two bodies of a loop."""

    def convolutions(parts: int) -> int:
        state = create_state(create_model(NETS[0], 4), optax.sgd(RATE), (8, 8, 1), accumulate=parts)
        with ops.cpu_kernels("plain"):
            text = jax.jit(train_step).lower(state, batch()).compile().as_text() or ""
        return text.count(" convolution(")

    assert convolutions(4) == 4 * convolutions(1) > 0


def test_a_batch_that_the_parts_cannot_share():
    message = r"accumulate \(--accumulate\) 5: a device has 12 images .* 5 equal parts; use 4"
    with pytest.raises(ConfigError, match=message):
        train_step(new_state(accumulate=5), (jnp.ones((12, 1, 1, 1)), jnp.zeros(12, jnp.int32)))
    with pytest.raises(ConfigError, match=message):
        check_batch(24, 100, 2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sam": -0.1}, "sam -0.1 is out of range"),
        ({"sam": float("inf")}, "sam inf"),
        ({"accumulate": 0}, "accumulate 0"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        new_state(**options)
