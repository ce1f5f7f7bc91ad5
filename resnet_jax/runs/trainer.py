"""The public Trainer: the core's, with a folder to keep the run in if you give one."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from tqdm import tqdm

from resnet_jax.data import ImageDataset
from resnet_jax.errors import ConfigError
from resnet_jax.ops.precision import without_x64
from resnet_jax.paths import check_readable, user_path
from resnet_jax.runs import rundir
from resnet_jax.runs.build import DataInfo
from resnet_jax.runs.checkpoint import kept_checkpoints
from resnet_jax.runs.fit_run import RunResult
from resnet_jax.runs.gathered import Own
from resnet_jax.runs.recording import Checkpointing, MetricsFile, Resume
from resnet_jax.runs.report import report_of_fit
from resnet_jax.runs.stopped import Stopped
from resnet_jax.runs.stored import Meta
from resnet_jax.training import trainer as core
from resnet_jax.training.averaging import Averaging
from resnet_jax.training.callbacks import StopSignals, check_needed_parts
from resnet_jax.training.loop import Loop, run
from resnet_jax.training.program import size_in
from resnet_jax.training.state import Variables

CONTINUED = "resume=True, with an optimizer of a lower learning rate"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainer(core.Trainer):
    __doc__ = f"""{core.Trainer.__doc__}
    run_dir: the folder that keeps metrics.jsonl and checkpoints/: the latest two checkpoints, and the best one by
    validation accuracy. None keeps nothing. resume: continue from the latest good checkpoint in run_dir, if it holds
    one. checkpoint_minutes: the time between checkpoints inside an epoch; each epoch ends with one too, and so does a
    fit that SIGINT or SIGTERM stops. report: write report.html, curves.png and confusion.png there at the end.
    """

    run_dir: str | Path | None = None
    resume: bool = False
    checkpoint_minutes: float = 10.0
    report: bool = True

    @without_x64()
    def fit(self, model: nn.Module, data: ImageDataset, *, variables: Variables | None = None) -> core.Result:
        """As the core's fit. With run_dir it also raises CheckpointError, and Stopped after SIGINT or SIGTERM."""
        if self.run_dir is None:
            if self.resume:
                raise ConfigError("resume=True needs run_dir, the folder of the run")
            return super().fit(model, data, variables=variables)
        path = user_path(self.run_dir, "run_dir")
        check_readable(path, "run_dir")
        loop = self.make_loop(model, data, variables)
        if not self.resume:
            rundir.check_new(path, "run_dir", "resume=True")
        signals, first = StopSignals(), loop.model
        self._about(loop)  # raises for values that a checkpoint cannot hold
        check_needed_parts(self.callbacks, data)  # before the folder is made
        with rundir.hold(path, new=not self.resume), kept_checkpoints(path, CONTINUED) as checkpoints:
            if self.resume and checkpoints.latest() is None:
                tqdm.write(f"run_dir {path} has no checkpoint yet: the fit starts at step 0")
            keep: Sequence[Any] = [
                MetricsFile(path),
                Checkpointing(checkpoints, self.checkpoint_minutes, self._about),
            ]
            resume = Resume(checkpoints, self._check_same)
            run(loop, [resume, *self.callbacks, signals, *self.displays(), *keep])
        if signals.received is not None and not loop.finished:
            raise Stopped(signals.received, path, loop.step)
        result = core.result_of(loop)
        if self.report:
            trained = model if loop.model is first else loop.model  # a callback may have grown it
            first_step = loop.program.preprocess_to(size_in(loop.sizes, 1))
            report_of_fit(path, Own(data, trained, first_step, self.seed, self.batch_size))
        return RunResult(result.variables, result.history, result.state, result.stopped, path)

    def _about(self, loop: Loop) -> Meta:
        """What a checkpoint says of a fit that has no Config."""
        data, normalize = loop.data, self.normalize
        mean, std = normalize if normalize is not None else (None, None)
        info = DataInfo(
            data.name, tuple(data.class_names), data.image_shape, len(data.train.labels), _numbers(mean), _numbers(std)
        )
        held: Meta = {"image_size": list(self.preprocess.image_size or (0, 0)), "freeze": list(self.freeze)}
        held |= {"batch_size": self.batch_size, "seed": self.seed, "normalize": [_numbers(mean), _numbers(std)]}
        held |= {"averaging": _in_words(self.averaging), "sizes": loop.sizes}
        held |= {"sam": float(self.sam), "accumulate": int(self.accumulate)}
        held |= {"sync_batch_norm": bool(self.sync_batch_norm)}
        held = json.loads(json.dumps(held))  # as a checkpoint holds it
        info = dataclasses.replace(info, digest=data.digest)
        return {"trainer": held, "model": repr(type(loop.model)), "data": dataclasses.asdict(info)}

    def _check_same(self, meta: Meta, loop: Loop) -> None:
        """Raise ConfigError if the checkpoint is of another fit."""
        if "trainer" not in meta:
            raise ConfigError(f"run_dir {self.run_dir}: train.py made this run; continue it with train.py --resume")
        new = self._about(loop)
        for name, old in meta["trainer"].items():  # runs of earlier versions have fewer names
            value = new["trainer"][name]
            if name == "averaging" and old and "(" not in old:  # the class alone, of an earlier version
                value = value.partition("(")[0]
            if old != value:
                raise ConfigError(
                    f"resume: the run in {self.run_dir} has {name} {old!r}, not {value!r}; give the same, or a new "
                    "run_dir"
                )
        if meta["model"] != new["model"]:
            raise ConfigError(f"resume: the run in {self.run_dir} has a {meta['model']}, not a {new['model']}")
        if meta["data"]["digest"] != new["data"]["digest"]:
            raise ConfigError(
                f"resume: the run in {self.run_dir} was trained on other data; give the same, or a new run_dir"
            )


def _in_words(averaging: Averaging | None) -> str:
    """The class and the values of an averaging, to compare two of them; "" for None. Functions are not compared."""
    if averaging is None:
        return ""
    held = {field.name: getattr(averaging, field.name) for field in dataclasses.fields(averaging)}
    words = (f"{name}={'function' if callable(value) else format(float(value), '.9g')}" for name, value in held.items())
    return f"{type(averaging).__name__}({', '.join(words)})"


def _numbers(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(np.atleast_1d(np.asarray(values, float)).tolist())
