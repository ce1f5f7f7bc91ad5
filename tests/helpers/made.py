"""A data set and networks so small that a run takes a second, and what the tests of training share."""

import contextlib
import dataclasses
import functools
import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from resnet_jax.data import DATASETS, Arrays, DatasetSpec, Splits
from resnet_jax.data.specs import digests_of
from resnet_jax.models import ARCHS, Arch
from resnet_jax.runs import Config, DataConfig, OptimConfig, RunConfig, Stopped, fit
from resnet_jax.runs.checkpoint import Checkpoints

NUM_TRAIN, NUM_TEST, BATCH = 52, 37, 16
STEPS = NUM_TRAIN // BATCH  # of an epoch: 3, and 4 images sit out

# what does not repeat from run to run: the times, and what follows from them
TIMINGS = {"images_per_second", "train_seconds", "eval_seconds"}

NETS = (
    Arch("tiny", ((1, 64), (1, 16))),
    Arch("tiny_wide", ((1, 64), (1, 24))),
)


@functools.cache
def make_splits() -> Splits:
    """8x8 images of 4 classes: a pattern a class and noise, so that there is something to learn."""
    rng = np.random.default_rng(1)
    patterns = rng.integers(0, 128, (4, 8, 8, 1))

    def arrays(count: int) -> Arrays:
        labels = rng.integers(0, 4, count).astype(np.int32)
        return Arrays((patterns[labels] + rng.integers(0, 128, (count, 8, 8, 1))).astype(np.uint8), labels)

    return Splits(arrays(NUM_TRAIN), arrays(NUM_TEST))


def make_spec() -> DatasetSpec:
    """Its server is a closed port."""
    return DatasetSpec(
        name="made",
        image_shape=(8, 8, 1),
        class_names=tuple("abcd"),
        num_train=NUM_TRAIN,
        num_test=NUM_TEST,
        url="http://127.0.0.1:9/",
        files=(),
        layout="idx",
        digests=digests_of(make_splits()),
        mean_std=(0.5, 0.25),
    )


def install(monkeypatch: Any = None) -> None:
    """Put data set and networks into the tables: for a test, or for the whole of a process."""
    entries = [(DATASETS, "made", make_spec()), *((ARCHS, arch.name, arch) for arch in NETS)]
    for table, name, entry in entries:
        if monkeypatch is None:
            table[name] = entry
        else:
            monkeypatch.setitem(table, name, entry)


def make_config(data_dir: Path, run_dir: Path, **changes: Any) -> Config:
    """Two epochs of all that has state: momentum, a schedule, augmentation. changes: of any field, by its own name."""
    data = DataConfig("made", data_dir=str(data_dir), normalize=True, flip=True, crop_padding=1)
    optim = OptimConfig(0.05, "constant", warmup_epochs=0.5, momentum=0.9, nesterov=True, weight_decay=1e-3)
    config = Config("tiny", epochs=2, batch_size=BATCH, data=data, optim=optim)
    # precision auto would round where the CPU has bfloat16; a report takes seconds
    run = RunConfig(str(run_dir), devices=2, precision="float32", report=False)
    return change(dataclasses.replace(config, run=run), **changes)


def change(config: Config, **changes: Any) -> Config:
    """The config with other values, each in the part that has a field of that name."""
    for part in ("data", "model", "optim", "run"):
        held = getattr(config, part)
        mine = {name: changes.pop(name) for name in list(changes) if hasattr(held, name)}
        config = dataclasses.replace(config, **{part: dataclasses.replace(held, **mine)})
    return dataclasses.replace(config, **changes)


def without_timings(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in history]


def read_rows(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def final(run_dir: Path) -> tuple[Any, ...]:
    """What a run has come to, bit for bit: the latest checkpoint's step, digests of all leaves, and metrics."""
    with Checkpoints(run_dir, read_only=True) as checkpoints:
        step = checkpoints.latest()
        assert step is not None
        meta = checkpoints.restore_meta(step)
    return step, meta["epoch"], meta["digests"], meta["sums"], without_timings(meta["history"])


class SignalAt:
    """A callback that sends this process a SIGTERM at the end of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, loop: Any) -> None:
        if loop.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)  # the handler runs before the next line


def fit_stopped_at(step: int, config: Config) -> int:
    """fit, with a SIGTERM that comes while it makes that step; the step at which it stops."""
    with pytest.raises(Stopped) as stopped:
        fit(config, callbacks=[SignalAt(step)])
    assert stopped.value.signum == signal.SIGTERM
    assert "--resume --run-dir" in str(stopped.value)
    return final(Path(config.run.run_dir))[0]


def kept(run_dir: Path) -> list[int]:
    """The steps of the checkpoints that a run has kept."""
    return sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir())


def flip_byte(path: Path, place: int = -1) -> None:
    """Change one bit of a file; by default in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place < 0 else place] ^= 4
    path.write_bytes(content)


def damage(run_dir: Path, *steps: int) -> None:
    """Flip a byte in the weights of these checkpoints."""
    for step in steps:
        for file in (run_dir / "checkpoints" / str(step) / "params" / "d").iterdir():
            flip_byte(file)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path under a folder, and the content of what is a file."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def assert_trees_close(mine: Any, theirs: Any, rtol: float, atol: float) -> None:
    jax.tree.map_with_path(
        lambda path, a, b: np.testing.assert_allclose(a, b, rtol, atol, err_msg=jax.tree_util.keystr(path)),
        jax.device_get(mine),
        jax.device_get(theirs),
    )


# pytest hears of what checkpoint.py keeps Python from printing: TensorStore calls back in an event loop that is closed
tensorstore_gives_up = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@contextlib.contextmanager
def no_large_files() -> Iterator[None]:
    """No file of this process can grow beyond 4 kB, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


_counting: dict[int, list[float]] = {}


@functools.cache
def _listen_to_compilations() -> None:
    """Register the one listener of the process: jax 0.7.2 has no public function that unregisters one."""

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            for seconds in _counting.values():
                seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)


@contextlib.contextmanager
def compilations() -> Iterator[list[float]]:
    """Yield a list that grows by one number, the seconds, with each program that XLA compiles."""
    _listen_to_compilations()
    seconds: list[float] = []
    _counting[id(seconds)] = seconds
    try:
        yield seconds
    finally:
        del _counting[id(seconds)]
