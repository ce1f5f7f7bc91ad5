"""Runs that grow: the same function at the growth, the optimizer's state moved with its weights, resumed to the bit."""

import dataclasses
import functools
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import made
import numpy as np
import optax
import pytest
from jax import numpy as jnp
from made import (
    BATCH,
    NETS,
    NUM_TRAIN,
    STEPS,
    final,
    fit_stopped_at,
    make_config,
    make_splits,
    read_rows,
    without_timings,
)
from thorough import thorough_except

from resnet_jax import cli, create_model, fit, load
from resnet_jax.data.augment import Preprocess
from resnet_jax.errors import CheckpointError, ConfigError
from resnet_jax.interop import Weights, save_weights
from resnet_jax.models import arch_from_dict
from resnet_jax.models.growth import moved
from resnet_jax.runs import OptimConfig, grow_run
from resnet_jax.runs.build import make_optimizer, make_schedule
from resnet_jax.runs.checkpoint import Checkpoints
from resnet_jax.runs.grown_run import remove_own
from resnet_jax.runs.override import check_same
from resnet_jax.runs.rundir import read_config
from resnet_jax.training import loop
from resnet_jax.training.growth import grow_state
from resnet_jax.training.optim import by_path, muon
from resnet_jax.training.parallel import replicate, shard
from resnet_jax.training.state import TrainState, create_state
from resnet_jax.training.step import Dataset, make_train_steps

GROW = "2:2,3:1"
VALIDATION = 12
FEWER = (NUM_TRAIN - VALIDATION) // BATCH  # steps of an epoch with a validation part
CONSTANT = {"warmup_epochs": 0.0, "weight_decay": 0.0, "momentum": 0.0, "nesterov": False}


def arch_of(run_dir, which="latest"):
    with Checkpoints(run_dir, read_only=True) as checkpoints:
        return arch_from_dict(checkpoints.restore_meta(getattr(checkpoints, which)())["arch"])


def finished(data_dir, cache_dir, run_dir, **changes):
    """The folder of a run that has come to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_dir))
        made.install(patch)
        fit(make_config(data_dir, run_dir, **changes))
    return run_dir


# ---- the state ----


def optimizers():
    """What training uses, and one with more to keep; each with weights of which it keeps nothing."""
    ours = OptimConfig(0.05, "cosine", 0.5, momentum=0.9, nesterov=True, weight_decay=1e-3)
    parts: dict[Any, Any] = {"kernel": optax.adam(1e-3), "other": optax.set_to_zero()}
    return {
        "sgd": make_optimizer(ours, make_schedule(ours, 3, STEPS)),
        "muon": muon(optax.linear_schedule(0.1, 0.0, 9), weight_decay=1e-3),
        "adamw": optax.adamw(optax.linear_schedule(0.1, 0.0, 9)),
        "kernels": optax.multi_transform(parts, labels),
        "by_path": by_path({"head": optax.adam(1e-3), "": optax.sgd(0.1, momentum=0.9)}),
    }


def labels(params):
    return jax.tree.map_with_path(lambda path, _: "kernel" if path[-1].key == "kernel" else "other", params)


@functools.cache
def initial(arch):
    """The arch's variables; compiled once."""
    return jax.device_get(jax.jit(create_model(arch, 4).init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))


def used_state(arch, optimizer, seed=0):
    """A state after two updates of noise."""
    held, rng = initial(arch), np.random.default_rng(0)
    opt_state = optimizer.init(held["params"])
    for _ in range(2):
        grads = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), held["params"])
        _, opt_state = optimizer.update(grads, opt_state, held["params"])
    stats = jax.tree.map(lambda leaf: leaf * np.float32(1.5) + np.float32(0.1), held["batch_stats"])
    opt_state, model = jax.device_get(opt_state), create_model(arch, 4)
    return TrainState(np.int32(2), held["params"], stats, opt_state, {}, np.uint32(seed), model, optimizer)


def named(tree):
    """Leaves by the names on their paths."""
    parts = jax.tree.leaves_with_path(tree)
    return {tuple(jax.tree_util.keystr((key,), simple=True) for key in path): np.asarray(leaf) for path, leaf in parts}


@pytest.mark.parametrize("name", thorough_except(("sgd", "adamw", "muon", "kernels", "by_path"), "muon", "by_path"))
def test_old_weights_keep_what_the_optimizer_knows(name):
    """And new ones start as init has them; counts go on. Two blocks come in before the last of three."""
    arch, optimizer = dataclasses.replace(NETS[0], stages=((1, 64), (3, 16))), optimizers()[name]
    state = used_state(arch, optimizer, seed=7)
    deeper, grown = grow_state(arch, state, stage=2, position=3, blocks=2)
    assert deeper.stages == ((1, 64), (5, 16))
    assert grown.step == 2
    fresh = optimizer.init(grown.params)
    assert jax.tree.structure(grown.opt_state) == jax.tree.structure(fresh)
    old, new, init = named(state.opt_state), named(grown.opt_state), named(fresh)
    for path, leaf in old.items():
        np.testing.assert_array_equal(new.pop(moved(path, 2, 3, 2)), leaf, err_msg=str(path))
    inserted = {tuple(path[i : i + 2]) for path in new for i in range(len(path)) if path[i] == "stage2"}
    assert inserted == {("stage2", "block3"), ("stage2", "block4")}
    for path, leaf in new.items():
        np.testing.assert_array_equal(leaf, init[path], err_msg=str(path))
    jax.tree.map(np.testing.assert_array_equal, grown.batch_stats["stem"], state.batch_stats["stem"])
    last = (tree["stage2"] for tree in (grown.batch_stats, state.batch_stats))
    jax.tree.map(np.testing.assert_array_equal, *(stage[f"block{5 - 2 * i}"] for i, stage in enumerate(last)))
    blocks = [grown.params["stage2"][f"block{i}"]["conv1"]["kernel"] for i in (3, 4)]
    assert np.any(blocks[0] != blocks[1])  # each has a key of its own


def test_the_optimizer_of_a_frozen_part_grows():
    """The optimizer knows the other parts only."""
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = used_state(NETS[0], optimizer)
    known = {"stage2": state.params["stage2"], "head": state.params["head"]}
    state = state.replace(frozen=("stem", "stage1"), opt_state=jax.device_get(optimizer.init(known)))
    _, grown = grow_state(NETS[0], state, stage=2)
    assert named(grown.opt_state).keys() == named(optimizer.init({**known, "stage2": grown.params["stage2"]})).keys()


@pytest.mark.parametrize("name", ["flat", "renamed"])
def test_an_optimizer_whose_state_cannot_be_carried_over(name):
    """Where names or shapes do not meet nothing is dropped without a word."""
    inner = optax.sgd(0.1, momentum=0.9)
    renamed = optax.GradientTransformation(lambda params: {"x": inner.init(params)}, inner.update)
    optimizer = {"flat": optax.flatten(inner), "renamed": renamed}[name]
    state = used_state(NETS[0], inner if name == "renamed" else optimizer).replace(optimizer=optimizer)
    with pytest.raises(ConfigError, match="state cannot be carried over to the grown network: ") as error:
        grow_state(NETS[0], state, stage=1)
    assert "\n" not in str(error.value)


def test_the_first_step_changes_old_weights_as_it_would_have():
    """Over momentum, schedule and weight decay; and it changes the new block: its gamma, and by decay its kernels."""
    optim = OptimConfig(0.05, "cosine", 0.5, momentum=0.9, nesterov=True, weight_decay=1e-2)
    optimizer, devices = make_optimizer(optim, make_schedule(optim, 3, STEPS)), jax.local_devices()[:2]
    state, splits = used_state(NETS[0], optimizer), make_splits()
    arch, grown = grow_state(NETS[0], state, stage=1)
    before = jax.tree.map(np.copy, named(grown.params))  # a step uses its state up
    rows = shard(np.arange(16, dtype=np.int32).reshape(2, 1, 8), devices)
    data = replicate(Dataset.of(splits.train.images, splits.train.labels), devices)

    def stepped(arch, state):
        model = create_model(arch, 4, axis_name="batch")
        steps, state = make_train_steps(Preprocess((8, 8)), devices), replicate(state.replace(model=model), devices)
        return jax.device_get(steps(1)(state, data, rows, np.int32(0)))

    (without, metrics), (end, grown_metrics) = stepped(NETS[0], state), stepped(arch, grown)
    np.testing.assert_allclose(grown_metrics.loss, metrics.loss, rtol=1e-6)
    old, new = named(without.params), named(end.params)
    for path, leaf in named(state.params).items():
        update = old[path] - leaf
        np.testing.assert_allclose(
            new.pop(path) - leaf, update, rtol=1e-5, atol=1e-5 * np.abs(update).max() + 1e-7, err_msg=str(path)
        )
    assert {path[:2] for path in new} == {("stage1", "block2")}
    gamma, kernel = (("stage1", "block2", *leaf) for leaf in (("bn2", "scale"), ("conv1", "kernel")))
    assert np.abs(new[gamma]).max() > 1e-5
    ratio = new[kernel] / before[kernel]  # Nesterov's first step: (1 + momentum) of the decay; no gradient, gamma is 0
    rate = make_schedule(optim, 3, STEPS)(2)
    np.testing.assert_allclose(ratio, 1 - rate * 1e-2 * 1.9, rtol=1e-5)


# ---- runs ----


def test_where_nothing_is_learnt_growth_changes_nothing(data_dir, tmp_path, capsys):
    """At a rate of 0, losses and accuracies of training and test are those of a run that does not grow."""
    config = make_config(data_dir, tmp_path / "a", learning_rate=0.0, **CONSTANT)
    plain = fit(config).history
    capsys.readouterr()
    grown = fit(made.change(config, run_dir=str(tmp_path / "b"), grow="2:2,2:1")).history
    for a, b in zip(plain, grown, strict=True):
        assert (a["train_accuracy"], a["test_accuracy"]) == (b["train_accuracy"], b["test_accuracy"])
        np.testing.assert_allclose([b["train_loss"], b["test_loss"]], [a["train_loss"], a["test_loss"]], rtol=1e-6)
    said = [line for line in capsys.readouterr().out.splitlines() if "starts with" in line]
    block = {64: 2 * (9 * 64 * 64 + 64 + 128), 16: 2 * (9 * 16 * 16 + 16 + 32)}  # of the seed's, by channels
    assert [line.rsplit(", ", 1)[0] for line in said] == [
        "epoch 2 starts with a new block 2 in stage 2: tiny-1-2",
        "epoch 2 starts with a new block 2 in stage 1: tiny-2-2",
    ]
    counts = [int(line.split()[-2].replace(",", "")) for line in said]
    assert counts[1] - counts[0] == block[64]
    sizes = jax.eval_shape(lambda: create_model("tiny", 4).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))["params"]
    assert counts[0] == sum(leaf.size for leaf in jax.tree.leaves(sizes)) + block[16]
    assert arch_of(tmp_path / "b").stages == ((2, 64), (2, 16))


@pytest.fixture(scope="module")
def whole(data_dir, cache_dir, tmp_path_factory):
    """A run of three epochs that grows twice and was never stopped."""
    return finished(
        data_dir, cache_dir, tmp_path_factory.mktemp("whole") / "run", epochs=3, grow=GROW, stochastic_depth=0.5
    )


@pytest.mark.parametrize("step", thorough_except((STEPS, STEPS + 1, 2 * STEPS + 2), STEPS + 1))
def test_a_run_goes_on_across_a_growth_to_the_bit(whole, data_dir, tmp_path, step):
    """Stopped at the end of the epoch before it, inside the epoch that began with it; and after two."""
    config = make_config(data_dir, tmp_path / "run", epochs=3, grow=GROW, stochastic_depth=0.5)
    assert fit_stopped_at(step, config) == step
    assert arch_of(tmp_path / "run").name == ("tiny", "tiny-1-2", "tiny-2-2")[(step - 1) // STEPS]
    result = fit(made.change(config, resume=True))
    assert final(tmp_path / "run") == final(whole)
    assert without_timings(read_rows(tmp_path / "run")) == without_timings(result.history)
    assert arch_of(tmp_path / "run").name == "tiny-2-2"


@pytest.mark.thorough
def test_two_blocks_in_one_epoch_and_all_options(data_dir, tmp_path):
    """They go on in the grown network: the new blocks have squeeze-and-excitation, and are dropped and recomputed."""
    options = {"width": 0.5, "zero_init": True, "squeeze_excitation": True, "stochastic_depth": 0.5, "remat": True}
    result = fit(make_config(data_dir, tmp_path / "run", grow="2:2, 2:2", **options))
    assert arch_of(tmp_path / "run").name == "tiny-1-3"
    assert np.isfinite(result.history[-1]["train_loss"])
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        model = create_model(arch_of(tmp_path / "run"), 4, width=0.5, squeeze_excitation=True)
        optimizer = make_optimizer(OptimConfig(momentum=0.9, weight_decay=1e-3), optax.constant_schedule(0.1))
        like = jax.eval_shape(lambda: create_state(model, optimizer, (8, 8, 1)))
        params = checkpoints.restore(2 * STEPS, like, 0).params
    blocks = params["stage2"]
    assert all("se" in block for block in blocks.values())
    assert all(np.abs(blocks[f"block{i}"]["bn2"]["scale"]).max() > 1e-6 for i in (2, 3))  # they have learnt


def test_a_frozen_trunk_does_not_grow(data_dir, tmp_path):
    """Its new block would stay the identity: neither by the flag nor by the command."""
    save_weights(tmp_path / "w", Weights("tiny", {}, initial(NETS[0])))
    config = make_config(data_dir, tmp_path / "run", epochs=1, freeze=True, pretrained=str(tmp_path / "w"))
    with pytest.raises(ConfigError, match="--grow with --freeze: a new block would never be trained"):
        fit(made.change(config, epochs=2, grow="2:2"))
    fit(config)
    with pytest.raises(ConfigError, match="trains its head alone"):
        grow_run(tmp_path / "run", tmp_path / "grown", stage=2)
    assert not (tmp_path / "grown").exists()


@pytest.mark.thorough
def test_a_run_starts_from_the_weights_of_a_grown_network(data_dir, tmp_path):
    """Its name is an --arch: kept in a folder of weights, and read back."""
    arch = dataclasses.replace(NETS[0], name="tiny-1-2", stages=((1, 64), (2, 16)))
    save_weights(tmp_path / "w", Weights(arch.name, {}, initial(arch)))
    config = make_config(data_dir, tmp_path / "run", epochs=1, learning_rate=0.0, arch=arch.name, **CONSTANT)
    fit(made.change(config, pretrained=str(tmp_path / "w")))
    assert arch_of(tmp_path / "run") == arch
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "run").variables["params"], initial(arch)["params"])


def test_the_best_checkpoint_is_of_another_depth_than_the_latest(data_dir, tmp_path, monkeypatch):
    """The best by validation accuracy; the test accuracy is said to rise."""
    said = {"validation": iter((1, 3, 2)), "test": iter((1, 2, 3))}

    def evaluate(fit_, name, evaluate=loop.evaluate):
        return dataclasses.replace(evaluate(fit_, name), correct=next(said[name]))

    monkeypatch.setattr(loop, "evaluate", evaluate)
    fit(make_config(data_dir, tmp_path / "run", epochs=3, grow=GROW, validation=VALIDATION))
    predictor = load(tmp_path / "run")
    assert (predictor.arch.name, arch_of(tmp_path / "run").name) == ("tiny-1-2", "tiny-2-2")
    images = (make_splits().test.images.astype(np.float32) / 255 - 0.5) / 0.25
    logits = np.asarray(create_model(predictor.arch, 4).apply(predictor.variables, images), np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(predictor(make_splits().test.images), expected, atol=1e-5)


def test_another_growth_is_another_run(data_dir, tmp_path):
    config = make_config(data_dir, tmp_path / "run", epochs=3, grow="2:2,3:1")
    fit_stopped_at(1, config)
    for grow, shown in (("", "''"), ("2:1", "2:1"), ("3:1,3:2", "3:1,3:2")):
        with pytest.raises(ConfigError, match=f"has --grow 2:2,3:1, not {shown}; leave --grow out"):
            fit(made.change(config, resume=True, grow=grow))
    check_same("the run", read_config(tmp_path / "run"), made.change(config, grow=" 2:2, 3:1"))  # the same, with blanks


# ---- a run made of another ----


@pytest.fixture(scope="module")
def short(data_dir, cache_dir, tmp_path_factory):
    """A run of one epoch."""
    return finished(data_dir, cache_dir, tmp_path_factory.mktemp("short") / "run", epochs=1)


def test_grown_by_the_command_or_while_training_is_the_same(short, data_dir, tmp_path):
    """To the bit: the blocks are of the seed and the depth alone."""
    before = made.snapshot(short)
    grown = grow_run(short, tmp_path / "grown", stage=2)
    assert (grown.arch.name, grown.config.run.run_dir) == ("tiny-1-2", str(tmp_path / "grown"))
    assert (grown.step, grown.epochs, grown.config.epochs, grown.rates[0]) == (STEPS, 1, 1, grown.rates[1])
    assert made.snapshot(short) == before
    assert read_rows(tmp_path / "grown") == read_rows(short)
    images = make_splits().test.images
    np.testing.assert_allclose(load(tmp_path / "grown")(images), load(short)(images), atol=1e-6)
    fit(make_config(data_dir, tmp_path / "grown", epochs=2, resume=True))
    fit(make_config(data_dir, tmp_path / "other", epochs=2, grow="2:2"))
    assert final(tmp_path / "grown") == final(tmp_path / "other")


@pytest.mark.thorough
def test_a_run_that_stopped_inside_an_epoch(data_dir, tmp_path):
    """What the epoch had summed up goes on; what is left of --grow too. It cannot be left half done."""
    config = make_config(data_dir, tmp_path / "run", epochs=2, grow="2:1")
    fit_stopped_at(2, config)
    grown = grow_run(tmp_path / "run", tmp_path / "new" / "grown", stage=2, position=2)
    assert (grown.step, grown.epochs) == (2, 0)
    other = made.change(config, run_dir=str(tmp_path / "other"), grow="")
    fit_stopped_at(STEPS + 1, other)
    with pytest.raises(ConfigError, match="--epochs 1: the run has begun epoch 2; give at least 2"):
        grow_run(tmp_path / "other", tmp_path / "no", stage=2, epochs=1)
    before = final(tmp_path / "other")
    with pytest.raises(ConfigError, match="--epochs 1: the run has begun epoch 2; give at least 2"):
        fit(made.change(other, resume=True, epochs=1))
    assert final(tmp_path / "other") == before
    result = fit(made.change(config, run_dir=str(tmp_path / "new" / "grown"), resume=True))
    assert arch_of(tmp_path / "new" / "grown").name == "tiny-2-2"
    assert [row["step"] for row in result.history] == [STEPS, 2 * STEPS]


@pytest.mark.thorough
def test_which_checkpoint_of_a_grown_run_is_the_best(data_dir, tmp_path, monkeypatch):
    """The one that it began with keeps its validation accuracy; one from inside an epoch has none."""
    correct = 1

    def evaluate(fit_, name, evaluate=loop.evaluate):
        return dataclasses.replace(evaluate(fit_, name), correct=correct)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    config = make_config(data_dir, tmp_path / "run", epochs=2, validation=VALIDATION)
    fit(made.change(config, run_dir=str(tmp_path / "short"), epochs=1))
    fit_stopped_at(FEWER + 1, config)
    grow_run(tmp_path / "short", tmp_path / "ended", stage=2, epochs=2)
    grow_run(tmp_path / "run", tmp_path / "inside", stage=2)
    correct = 0
    for name, best in (("ended", FEWER), ("inside", 2 * FEWER)):
        fit(made.change(config, run_dir=str(tmp_path / name), resume=True))
        assert load(tmp_path / name).step == best


BAD = [
    ({"stage": 3}, ConfigError, "--stage 3: tiny has 2 stages; use 1 to 2"),
    ({"stage": 0}, ConfigError, "--stage 0"),
    ({"stage": 2, "position": 3}, ConfigError, "--position 3: stage 2 of tiny has 1 blocks; use 2 to 2"),
    ({"stage": 2, "position": 1}, ConfigError, "position 1: the first block of stage 2 of tiny changes the size"),
    ({"stage": 2, "blocks": 0}, ConfigError, "--blocks 0 must be at least 1"),
    ({"stage": 2, "blocks": 10**9}, ConfigError, "--blocks 1000000000: stage 2 of tiny has 1, and a stage has at most"),
    ({"stage": 2, "run_dir": "loop"}, ConfigError, "RUN_DIR loop: Too many levels of symbolic links"),
    ({"stage": 2, "epochs": 0}, ConfigError, "--epochs 0: the run has begun epoch 1; give at least 1"),
    ({"stage": 2, "out": "full"}, ConfigError, "--out full exists; give another folder"),
    ({"stage": 2, "out": "full/file/run"}, ConfigError, "full/file is not a writable folder"),
    ({"stage": 2, "out": "x" * 300}, ConfigError, "File name too long"),
    ({"stage": 2, "out": "link/deeper"}, ConfigError, "--out link/deeper is inside"),
    ({"stage": 2, "run_dir": "full"}, CheckpointError, "full: no run is kept there"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), BAD)
def test_a_run_that_cannot_be_made(short, changes, kind, message):
    Path("full").mkdir()
    Path("full/file").touch()
    Path("link").symlink_to(short)
    Path("loop").symlink_to("loop")
    before = made.snapshot(Path())
    with made.compilations() as programs, pytest.raises(kind) as error:
        grow_run(**{"run_dir": short, "out": "grown", **changes})
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not programs
    assert made.snapshot(Path()) == before


@made.tensorstore_gives_up
def test_nothing_is_left_of_a_checkpoint_that_cannot_be_written(short, tmp_path):
    """Nor of the folders above it. What fails is written in the background, as on a full disk."""
    grow_run(short, "warm", stage=2)  # so that no program is left to be cached
    shutil.rmtree("warm")
    with made.no_large_files(), pytest.raises(ConfigError, match="--out a/b/grown cannot be written: File too large"):
        grow_run(short, "a/b/grown", stage=2)
    assert list(tmp_path.iterdir()) == []


def test_unfinished_folders_of_other_processes_stay(short, tmp_path, capsys):
    """Issue 11, case 26: the pid of a process on another host or in another container looks dead here."""
    others = [".grown.part-999999999", ".grown.part-1", ".grown.part-0123456789abcdef", ".grown2.part-999999999"]
    for name in others:
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "half").write_text(name)
    before = made.snapshot(tmp_path)
    grow_run(short, tmp_path / "grown", stage=2)
    after = made.snapshot(tmp_path)
    assert {path: content for path, content in after.items() if path in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "grown"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "unfinished" in line] == [
        str(tmp_path / name) for name in sorted(others[:3])
    ]


def test_a_fork_does_not_remove_the_folder_of_its_parent(tmp_path):
    (tmp_path / "part").mkdir()
    remove_own(tmp_path / "part", os.getpid() + 1)
    assert (tmp_path / "part").is_dir()
    remove_own(tmp_path / "part", os.getpid())
    assert not (tmp_path / "part").exists()


def test_nothing_is_left_when_it_is_terminated(short, tmp_path, monkeypatch):
    def save(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(SystemExit) as stop:
        cli.command(["grow", str(short), "--stage", "2", "--out", "a/grown"])
    assert stop.value.code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["params", "arch", "dtype", "sums", "history"])
def test_a_damaged_run(short, tmp_path, missing):
    """Items, and entries of the JSON one."""
    shutil.copytree(short, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / str(STEPS)
    if missing == "params":
        shutil.rmtree(checkpoint / missing)
    else:
        meta = json.loads((checkpoint / "meta/metadata").read_text())
        del meta[missing]
        (checkpoint / "meta/metadata").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="damaged"):
        grow_run(tmp_path / "run", tmp_path / "grown", stage=2)
    with pytest.raises(CheckpointError, match="damaged"):
        fit(made.change(read_config(short), run_dir=str(tmp_path / "run"), resume=True))
    assert not (tmp_path / "grown").exists()


def test_names_on_paths():
    path = ("1", "trace", "stage2", "block3", "conv1", "kernel")
    assert moved(path, 2, 3) == ("1", "trace", "stage2", "block4", "conv1", "kernel")
    assert moved(path, 2, 4) == moved(path, 1, 1) == path
