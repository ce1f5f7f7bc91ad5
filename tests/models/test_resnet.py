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

from resnet_jax import ResNet, ResNet18, ResNeXtBlock, create_model
from resnet_jax.errors import ConfigError

ATOL = 1e-4  # of logits; of gradients it is relative to the leaf's norm, where that is above 1
STATS_ATOL = 1e-5

FROZEN = seeded.frozen("torch_nets")
SMALL = ResNet(((1, 64), (2, 32)), block=partial(ResNeXtBlock, groups=16, bot_mul=1))


def make(case):
    return SMALL if case.group_width else ResNet(case.arch)


@pytest.mark.parametrize("mode", seeded.MODES)
@pytest.mark.parametrize("case", seeded.NETS, ids=lambda case: case.name)
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

    @jax.jit
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
