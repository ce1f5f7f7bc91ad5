"""Trainer.fit and train_step with networks, losses, optimizers and callbacks of a user's own."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax import numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from thorough import thorough_except

import resnet_jax
from resnet_jax.errors import CallbackError, ConfigError
from resnet_jax.training.step import Metrics
from resnet_jax.training.trainer import Trainer

RNG = np.random.default_rng(0)
LABELS = (np.arange(48) % 3).astype(np.int32)
IMAGES = np.clip(RNG.normal(60, 20, (48, 8, 9, 3)) + 60 * LABELS[:, None, None, None], 0, 255).astype(np.uint8)
DATA: Any = resnet_jax.data.from_arrays(IMAGES, LABELS, validation=12, seed=0)


class Cnn(nn.Module):
    """A plain network without batch statistics."""

    classes: int = 3

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(8, (3, 3), 2, name="conv")(x)).mean((1, 2))
        return nn.Dense(self.classes, name="head")(x)


class WithNorm(nn.Module):
    """Flax's own batch norm."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), 2, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="bn")(x)).mean((1, 2))
        return nn.Dense(3, name="head")(x)


def quiet(**changes) -> Trainer:
    return Trainer(**{"max_epochs": 2, "batch_size": 12, "devices": 1, "progress": False, **changes})


def hand_made_epoch(model, optimizer, order, loss):
    """The params after one epoch, by value_and_grad and optax alone."""
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 9, 3)))["params"]
    state = optimizer.init(params)

    def mean_loss(params, images, labels):
        return loss(model.apply({"params": params}, images), labels).mean()

    for rows in order:
        images, labels = DATA.train.images[rows].astype(np.float32) / 255, DATA.train.labels[rows]
        updates, state = optimizer.update(jax.grad(mean_loss)(params, images, labels), state, params)
        params = optax.apply_updates(params, updates)
    return params


def smoothed(logits, labels):
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(labels, 3), 0.1))


@pytest.mark.parametrize(
    "optimizer", [optax.sgd(0.1), pytest.param(optax.adamw(1e-2), marks=pytest.mark.thorough)], ids=["sgd", "adamw"]
)
def test_an_epoch_is_that_of_a_loop_by_hand(optimizer):
    from resnet_jax.training.step import epoch_rows

    result = quiet(max_epochs=1, optimizer=optimizer, loss=smoothed).fit(Cnn(), DATA)
    order = epoch_rows(0, 0, 36, 12, 1)[0]
    expected = hand_made_epoch(Cnn(), optimizer, order, smoothed)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), result.variables["params"], expected)


def test_a_scalar_loss_is_the_mean_of_the_batch():
    per_image = quiet(loss=smoothed).fit(Cnn(), DATA)
    mean = quiet(loss=lambda logits, labels: smoothed(logits, labels).mean()).fit(Cnn(), DATA)
    for a, b in zip(per_image.history, mean.history, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)


def test_a_mean_loss_is_evaluated_without_the_padding():
    """12 images in batches of 7: the padding repeats an image, which must not count."""
    result = quiet().fit(Cnn(), DATA)
    mean = quiet(batch_size=7, loss=lambda logits, labels: smoothed(logits, labels).mean())
    each = quiet(batch_size=7, loss=smoothed)
    found = (trainer.evaluate(Cnn(), result.variables, DATA.validation).mean_loss for trainer in (mean, each))
    assert next(found) == pytest.approx(next(found), rel=1e-5)


def test_weights_to_start_from_must_be_the_models():
    start: Any = Cnn().init(jax.random.key(1), jnp.zeros((1, 8, 9, 3)))
    head = {"params": {"head": start["params"]["head"]}}
    result = quiet(optimizer=optax.sgd(0.0), max_epochs=1).fit(Cnn(), DATA, variables=head)
    jax.tree.map(np.testing.assert_array_equal, result.variables["params"]["head"], start["params"]["head"])
    for wrong, message in (
        ({"params": {"fc": start["params"]["head"]}}, "the model has no params/fc/kernel, params/fc/bias"),
        ({"params": {"head": {"bias": np.zeros(3)}}}, "params/head/kernel is missing"),
        ({"params": {"head": {"bias": np.zeros(7), "kernel": np.zeros((8, 7))}}}, r"params/head/bias is \(7,\), not"),
    ):
        with pytest.raises(ConfigError, match=message):
            quiet().fit(Cnn(), DATA, variables=wrong)


def test_evaluation_counts_each_image_once():
    result = quiet().fit(Cnn(), DATA)
    found = quiet(batch_size=7, devices=1).evaluate(Cnn(), result.variables, DATA.validation)
    logits: Any = Cnn().apply(result.variables, DATA.validation.images / np.float32(255))
    assert found.count == 12
    assert found.accuracy == (np.argmax(logits, -1) == DATA.validation.labels).mean()
    assert found.accuracy == result.history[-1]["validation_accuracy"]


def test_normalised_images_are_what_the_network_sees():
    trainer = quiet(normalize=(DATA.mean, DATA.std), max_epochs=1)
    result = trainer.fit(Cnn(), DATA)
    seen = (DATA.validation.images / np.float32(255) - np.float32(DATA.mean)) / np.float32(DATA.std)
    logits: Any = Cnn().apply(result.variables, seen)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, DATA.validation.labels)
    assert result.history[0]["validation_loss"] == pytest.approx(float(losses.mean()), rel=1e-4)


def test_augmentations_get_a_key_for_each_image_and_step():
    def noise(key, image):
        return jnp.clip(image + jax.random.normal(key, image.shape) * 0.1, 0, 1)

    first = quiet(augment=[resnet_jax.augment.flip, noise, resnet_jax.augment.crop(1)]).fit(Cnn(), DATA)
    again = quiet(augment=[resnet_jax.augment.flip, noise, resnet_jax.augment.crop(1)]).fit(Cnn(), DATA)
    plain = quiet().fit(Cnn(), DATA)
    assert first.history[-1]["train_loss"] == again.history[-1]["train_loss"] != plain.history[-1]["train_loss"]


@pytest.mark.parametrize(
    "model", [Cnn(), pytest.param(WithNorm(), marks=pytest.mark.thorough)], ids=["plain", "batch norm"]
)
def test_two_devices_train_as_one(model):
    one = quiet(max_epochs=1).fit(model, DATA)
    two = quiet(max_epochs=1, devices=2).fit(model, DATA)
    tolerance = 1e-4 if isinstance(model, Cnn) else 0.2  # flax's batch norm has statistics of each device's images
    assert two.history[0]["train_loss"] == pytest.approx(one.history[0]["train_loss"], rel=tolerance)


def test_frozen_parts_keep_weights_and_statistics():
    model = WithNorm()
    start: Any = model.init(jax.random.key(0), jnp.zeros((1, 8, 9, 3)))
    result = quiet(freeze=("conv", "bn"), optimizer=optax.adamw(1e-2)).fit(model, DATA)
    for collection in ("params", "batch_stats"):
        for name in ("conv", "bn"):
            if name in start[collection]:
                old, new = start[collection][name], result.variables[collection][name]
                jax.tree.map(np.testing.assert_array_equal, old, new)
    assert not np.array_equal(start["params"]["head"]["kernel"], result.variables["params"]["head"]["kernel"])
    assert set(result.state.opt_state[0].mu) == {"head"}


def test_a_different_optimizer_for_each_part():
    optimizer = {"head": optax.sgd(0.5), "conv/bias": optax.set_to_zero(), "": optax.sgd(0.25)}
    start = Cnn().init(jax.random.key(0), jnp.zeros((1, 8, 9, 3)))["params"]
    one_step = {"max_epochs": 1, "batch_size": 36}
    by_part = quiet(optimizer=optimizer, **one_step).fit(Cnn(), DATA).variables["params"]
    same = quiet(optimizer=optax.sgd(0.25), **one_step).fit(Cnn(), DATA).variables["params"]
    np.testing.assert_array_equal(by_part["conv"]["bias"], start["conv"]["bias"])
    np.testing.assert_allclose(by_part["conv"]["kernel"], same["conv"]["kernel"], 1e-6)
    change, base = (p["head"]["kernel"] - start["head"]["kernel"] for p in (by_part, same))
    np.testing.assert_allclose(change, 2 * base, 1e-3, 1e-7)


class Recorder:
    def __init__(self, name, events):
        self.name, self.events = name, events

    def __getattr__(self, event):
        if not event.startswith("on_"):
            raise AttributeError(event)
        return lambda loop: self.events.append((self.name, event, loop.step, loop.epoch))


def test_the_order_of_calls():
    events = []
    quiet(callbacks=[Recorder("a", events), Recorder("b", events)], batch_size=18).fit(Cnn(), DATA)
    calls = [("on_fit_start", 0, 0)]
    for epoch in (1, 2):
        calls += [("on_step_end", 2 * epoch - 1, epoch), ("on_step_end", 2 * epoch, epoch)]
        calls += [("on_epoch_end", 2 * epoch, epoch)]
    expected = [(name, *call) for call in calls for name in ("a", "b")]
    assert events == [*expected, ("b", "on_fit_end", 4, 2), ("a", "on_fit_end", 4, 2)]


def test_a_callback_may_stop_add_to_rows_and_change_the_state():
    class Own:
        def on_step_end(self, loop):
            if loop.step == 1:
                zeros = jax.tree.map(jnp.zeros_like, loop.state.params)
                loop.state = loop.state.replace(params=zeros)

        def on_epoch_end(self, loop):
            loop.row["mine"] = float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(loop.state.params)))
            loop.stop("enough")

    result = quiet(callbacks=[Own()], optimizer=optax.sgd(0.0), max_epochs=5).fit(Cnn(), DATA)
    assert (len(result.history), result.stopped, result.history[0]["mine"]) == (1, "enough", 0.0)


@pytest.mark.parametrize("event", ["on_fit_start", "on_step_end", "on_epoch_end", "on_fit_end"])
def test_a_callback_that_raises_is_named(event):
    class Broken:
        pass

    def fail(loop):
        raise KeyError("no such column")

    broken, events = Broken(), []
    setattr(broken, event, fail)
    with pytest.raises(CallbackError, match=f"callback Broken: {event} raised KeyError: 'no such column'") as caught:
        quiet(callbacks=[Recorder("a", events), broken]).fit(Cnn(), DATA)
    assert isinstance(caught.value.__cause__, KeyError)
    assert events[-1][1] == "on_fit_end"


def test_early_stopping_is_a_function_of_the_history():
    stopping = resnet_jax.EarlyStopping(patience=2)
    rows = [{"validation_loss": loss} for loss in (3.0, 2.0, 2.5, 1.0, 1.5, 1.0, 1.2)]
    assert [stopping.epochs_without_improvement(rows[: i + 1]) for i in range(7)] == [0, 0, 1, 0, 1, 2, 3]
    rising = resnet_jax.EarlyStopping(patience=2, monitor="validation_accuracy", min_delta=0.1)
    rows = [{"validation_accuracy": value} for value in (0.5, 0.55, 0.7)]
    assert [rising.epochs_without_improvement(rows[: i + 1]) for i in range(3)] == [0, 1, 0]


def test_early_stopping_ends_the_fit():
    still = quiet(optimizer=optax.sgd(0.0), max_epochs=9, callbacks=[resnet_jax.EarlyStopping(patience=2)])
    result = still.fit(Cnn(), DATA)
    assert len(result.history) == 3
    assert result.stopped == "validation_loss has not improved for 2 epochs"


class Wrong(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(x)


class NoTrain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.mean((1, 2)))


@pytest.mark.parametrize(
    ("changes", "model", "message"),
    [
        ({}, Cnn(classes=4), r"model: its output has shape \(2, 4\) for 2 images; it must be \(N, 3\)"),
        ({}, Wrong(), r"model: its output has shape \(2, 8, 9, 3\)"),
        ({}, NoTrain(), r"model: NoTrain.__call__ must take \(x, train\)"),
        ({}, Cnn, "model: .* is no flax.linen module"),
        ({"optimizer": 0.1}, Cnn(), "optimizer 0.1 is no optax.GradientTransformation"),
        ({"optimizer": optax.sgd}, Cnn(), "is no optax.GradientTransformation"),
        (
            {"optimizer": {"heat": optax.sgd(1), "": optax.sgd(1)}},
            Cnn(),
            "'heat' names no part of the model; its parts",
        ),
        ({"optimizer": {"head": optax.sgd(1)}}, Cnn(), "optimizer: no path covers conv/kernel, conv/bias; add one"),
        ({"freeze": ("heat",)}, Cnn(), "freeze 'heat' names no part of the model; its parts are conv, head"),
        ({"freeze": ("conv", "head")}, Cnn(), "nothing is left to train"),
        ({"batch_size": 37}, Cnn(), "37 is more than the 36 training images; use at most 36"),
        ({"batch_size": 0}, Cnn(), "batch_size 0 must be at least 1"),
        ({"max_epochs": "3"}, Cnn(), "max_epochs 3: give a whole number"),
        ({"callbacks": Recorder("a", [])}, Cnn(), "callbacks Recorder: give a list of callbacks"),
        ({"batch_size": 9, "devices": 2}, Cnn(), "9 cannot be split over 2 devices; use 8 or 10"),
        ({"seed": -1}, Cnn(), "seed -1 is out of range"),
        ({"devices": []}, Cnn(), "devices: the list is empty"),
        ({"devices": 99}, Cnn(), r"devices \(--devices\) 99: this process has 8"),
        ({"max_epochs": 0}, Cnn(), "max_epochs 0 must be at least 1"),
        ({"callbacks": [print]}, Cnn(), "callbacks: <built-in function print> is no callback"),
        ({"loss": lambda logits, labels: logits}, Cnn(), r"loss returns shape \(12, 3\) for logits \(12, 3\)"),
        ({"augment": [lambda key, image: image[:4]]}, Cnn(), r"augment: <lambda> returns shape \(4, 9, 3\)"),
    ],
)
def test_invalid_arguments_are_named(changes, model, message):
    with pytest.raises(ConfigError, match=message) as caught:
        quiet(**changes).fit(model, DATA)
    assert "\n" not in str(caught.value)


def test_data_that_is_no_data_set():
    with pytest.raises(ConfigError, match=r"data: tuple is no ImageDataset; resnet_jax\.data\.from_arrays"):
        quiet().fit(Cnn(), (IMAGES, LABELS))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="part NoneType: give a part of the data"):
        quiet().evaluate(Cnn(), {}, DATA.test)


def test_early_stopping_needs_a_validation_part():
    with pytest.raises(ConfigError, match="the data has no validation part"):
        quiet(callbacks=[resnet_jax.EarlyStopping()]).fit(Cnn(), dataclasses.replace(DATA, validation=None))
    with pytest.raises(ConfigError, match="the test set must not choose"):
        resnet_jax.EarlyStopping(monitor="test_loss")


# --- a loop of one's own


def bridged() -> nn.Module:
    """An NNX network as a linen module."""

    class Net(nnx.Module):
        def __init__(self, *, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.head = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x, train=False):
            return self.head(nnx.relu(self.norm(self.conv(x), use_running_average=not train)).mean((1, 2)))

    return nnx.bridge.to_linen(Net)


OWN = {
    "cnn": lambda: Cnn(),
    "bridged": bridged,
    "resnet": lambda: resnet_jax.create_model("resnet20", 3, width=0.5),
}


@pytest.mark.parametrize("name", thorough_except(OWN, "cnn", "bridged"))
def test_a_loop_of_ones_own_learns(name):
    state = resnet_jax.create_state(OWN[name](), optax.adam(1e-2), (8, 9, 3))
    step = jax.jit(resnet_jax.train_step)
    curve = []
    for _ in range(8):
        state, metrics = step(state, {"image": IMAGES[:24], "label": LABELS[:24]})
        curve.append(jax.device_get(metrics))
    assert curve[-1].mean_loss < curve[0].mean_loss
    assert (int(state.step), int(curve[-1].count)) == (8, 24)


def one_step(name: str, kernels: str, how: Any) -> Any:
    with resnet_jax.ops.cpu_kernels(kernels):
        model = OWN[name]()
        state = resnet_jax.create_state(model, optax.sgd(0.1, momentum=0.9), (8, 9, 3))
        images = IMAGES[:16].astype(np.float32) / 255
        state, metrics = how(state, (images, LABELS[:16]))
        return jax.device_get(state.params), jax.device_get(metrics)


def by_shard_map(state, batch):
    mesh, spec = Mesh(np.array(jax.devices()[:2]), ("data",)), PartitionSpec
    step = jax.shard_map(resnet_jax.train_step, mesh=mesh, in_specs=(spec(), spec("data")), out_specs=(spec(), spec()))
    return jax.jit(step)(state, batch)


def by_pmap(state, batch):
    shares = jax.tree.map(lambda x: x.reshape(2, 8, *x.shape[1:]), batch)
    step = jax.pmap(
        resnet_jax.train_step, axis_name="batch", in_axes=(None, 0), out_axes=None, devices=jax.devices()[:2]
    )
    return step(state, shares)


@pytest.mark.parametrize("kernels", ["xla", "onednn"])
@pytest.mark.parametrize("how", [by_shard_map, by_pmap])
@pytest.mark.parametrize("name", thorough_except(("cnn", "resnet"), "cnn"))
def test_two_devices_make_the_step_of_one(name, how, kernels):
    """A network without batch statistics: the sum of two devices' gradients is one device's. With them: finite."""
    if kernels == "onednn" and not resnet_jax.ops.native_available():
        pytest.skip("the oneDNN kernels are not installed")
    many, metrics = one_step(name, kernels, how)
    one, expected = one_step(name, kernels, jax.jit(resnet_jax.train_step))
    assert isinstance(metrics, Metrics)
    assert metrics.count == expected.count == 16
    if name == "cnn":
        assert metrics.loss == pytest.approx(expected.loss, rel=1e-5)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), many, one)
    else:  # statistics of each device's own images: compared with shared ones in tests/ops/test_shard_map.py
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(many))
        assert metrics.loss == pytest.approx(expected.loss, rel=0.3)


def test_a_batch_that_is_no_pair():
    state = resnet_jax.create_state(Cnn(), optax.sgd(0.1), (8, 9, 3))
    with pytest.raises(ConfigError, match=r"batch: give \(images, labels\), or a mapping"):
        resnet_jax.train_step(state, {"x": IMAGES})
