"""Averages of the weights against steps of a quadratic by hand."""

import numpy as np
import pytest
from jax import numpy as jnp
from quadratic import RATE, START, batches, gradient, new_state, trained

from resnet_jax import Ema, Lookahead
from resnet_jax.errors import ConfigError
from resnet_jax.training.averaging import check_lookahead, fading_alpha, towards

STEPS = 12


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_ema(decay):
    """Weights and statistics; its decay starts at 2/11. Training is that of a fit without it."""
    data = batches(STEPS)
    w, mean, average, average_mean = START, 0.0, START, 0.0
    plain = trained(new_state(), data)
    for t, ((x, y), state, same) in enumerate(
        zip(data, trained(new_state(averaging=Ema(decay)), data), plain, strict=True)
    ):
        w, mean = w - RATE * gradient(w, x, y), mean / 2 + x.mean() / 2
        d = min(decay, (2 + t) / (11 + t))
        average, average_mean = d * average + (1 - d) * w, d * average_mean + (1 - d) * mean
        np.testing.assert_allclose(state.variables["params"]["w"], average, 1e-5)
        np.testing.assert_allclose(state.variables["batch_stats"]["mean"], average_mean, 1e-5)
        np.testing.assert_array_equal(state.params["w"], same.params["w"])
        np.testing.assert_array_equal(state.batch_stats["mean"], same.batch_stats["mean"])


@pytest.mark.parametrize("fading", [False, True])
def test_lookahead(fading):
    """Every 5 steps the slow weights move, and training continues from them; between they are evaluated."""
    data, alpha = batches(STEPS), fading_alpha(5, STEPS) if fading else 0.25
    w, mean, slow, slow_mean = START, 0.0, START, 0.0
    for t, ((x, y), state) in enumerate(
        zip(data, trained(new_state(averaging=Lookahead(5, alpha)), data), strict=True), 1
    ):
        w, mean = w - RATE * gradient(w, x, y), mean / 2 + x.mean() / 2
        if t % 5 == 0:
            share = 1 - 0.95**5 * (t / STEPS) ** 3 if fading else 0.25
            slow, slow_mean = slow + share * (w - slow), slow_mean + share * (mean - slow_mean)
            w, mean = slow, slow_mean
        np.testing.assert_allclose(state.params["w"], w, 1e-5)
        np.testing.assert_allclose(state.batch_stats["mean"], mean, 1e-5)
        np.testing.assert_allclose(state.variables["params"]["w"], slow, 1e-5)
        np.testing.assert_allclose(state.variables["batch_stats"]["mean"], slow_mean, 1e-5)


def test_fading_alpha_is_that_of_airbench():
    """cifar10-airbench keeps 0.95^5 * (step / steps)^3 of the slow weights."""
    kept = [1 - fading_alpha(5, 100)(step) for step in (0, 50, 100)]
    np.testing.assert_allclose(kept, [0, 0.95**5 / 8, 0.95**5], atol=1e-12)


def test_equal_leaves_stay_equal_and_counters_are_copied():
    """A frozen part keeps its bits."""
    same = jnp.asarray(np.random.default_rng(0).normal(size=100).astype(np.float32))
    found = towards({"a": same, "n": jnp.int32(3)}, {"a": same, "n": jnp.int32(4)}, 0.123)
    np.testing.assert_array_equal(found["a"], same)
    assert found["n"] == 4


@pytest.mark.parametrize("share", [0.25, jnp.float32(0.25)], ids=["a number", "an array"])
def test_averages_keep_their_dtype(share):
    half = {"w": jnp.ones(3, jnp.bfloat16)}
    assert towards(half, half, share)["w"].dtype == jnp.bfloat16


def test_a_fit_that_ends_before_lookahead_moves_is_refused():
    check_lookahead(Lookahead(5), 5)
    check_lookahead(None, 1)
    check_lookahead(Ema(0.9), 1)
    with pytest.raises(ConfigError, match=r"lookahead \(--lookahead\) 6: .* never move, as the run has 5 steps"):
        check_lookahead(Lookahead(6), 5)


def test_averages_share_no_buffer_with_the_weights():
    """The step donates its state, and a buffer cannot be donated twice."""
    state = new_state(averaging=Ema(0.9))
    assert state.averages["params"]["w"].unsafe_buffer_pointer() != state.params["w"].unsafe_buffer_pointer()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ema(1.0), "decay 1.0 is out of range"),
        (lambda: Ema(float("nan")), "decay nan is out of range"),
        (lambda: Lookahead(0), "every 0 must be at least 1"),
        (lambda: Lookahead(5, 0.0), "alpha 0.0 is out of range"),
        (lambda: Lookahead(5, 1.5), "alpha 1.5 is out of range"),
        (lambda: new_state(averaging=0.999), r"averaging 0.999: give resnet_jax.Ema\(0.999\)"),
    ],
)
def test_values_out_of_range(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
