"""What a report shows of a run, gathered from its folder and, where it can be read, its data."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn

from resnet_jax.data import ImageDataset
from resnet_jax.data.augment import Preprocess
from resnet_jax.errors import CheckpointError, UserError
from resnet_jax.models import get_arch, layer_summary
from resnet_jax.ops.precision import without_x64
from resnet_jax.reporting.page import Evaluated, Mistake, Picture, Report
from resnet_jax.reporting.thumbnails import data_uri
from resnet_jax.runs import build, repeat, rundir
from resnet_jax.runs.checkpoint import Checkpoints
from resnet_jax.runs.checks import resizings
from resnet_jax.runs.evaluation import Evaluation, Opened, check_digest, evaluate, open_run, own_data, pick_part
from resnet_jax.runs.facts import Found, about, facts_of, options_of, override_words
from resnet_jax.runs.history import read_rows
from resnet_jax.runs.stored import Meta
from resnet_jax.training.memory import enough_memory
from resnet_jax.training.preview import preview
from resnet_jax.training.program import size_in
from resnet_jax.training.step import epoch_rows
from resnet_jax.training.trainer import checked_sizes

MISTAKES, AUGMENTED = 36, 10
Read = Callable[[Opened], ImageDataset]


class Own(NamedTuple):
    """What a fit in this process knows and its folder does not say. augment: of training images, with its seed."""

    dataset: ImageDataset
    model: nn.Module | None = None
    augment: Preprocess | None = None
    seed: int = 0
    batch_size: int = 0


def gather(path: Path, own: Own | None = None, read: Read = own_data) -> tuple[Report, Evaluation | None]:
    """The report of a run, and the evaluation in it.

    own: of a fit that has just ended. read: how the data of a run is read again. Raises CheckpointError for a folder
    with neither rows nor a checkpoint; whatever else is missing becomes a note.
    """
    found = Found(path, [])
    _read_folder(found)
    _open(found, own)
    if not found.history and not found.meta:
        raise CheckpointError(f"{path}: there is nothing to report: no row in {rundir.METRICS_FILE} and no checkpoint")
    _evaluate(found, own, read)
    return _report(found, own), found.evaluation


def _read_folder(found: Found) -> None:
    """History and config."""
    found.history, torn = read_rows(found.path)
    if torn:
        lines = "line" if len(torn) == 1 else "lines"
        numbers = ", ".join(map(str, torn))
        found.notes.append(
            f"{rundir.METRICS_FILE}: {lines} {numbers} cannot be read and {'is' if len(torn) == 1 else 'are'} left out."
        )
    if (found.path / rundir.CONFIG_FILE).exists():
        try:
            found.config = rundir.read_config(found.path)
            found.overrides = rundir.read_overrides(found.path)
        except CheckpointError as error:
            found.notes.append(f"The recipe is missing: {error}.")


def _open(found: Found, own: Own | None) -> None:
    """The best checkpoint, or at least its meta."""
    try:
        found.opened = open_run(found.path, own.model if own else None)
        found.meta = found.opened.meta
        found.config = found.config or found.opened.config
    except UserError as error:
        found.meta = _meta_of(found.path)
        trainer = "trainer" in found.meta
        reason = (
            "a Trainer made this run, and its folder does not say how to build the model; the Trainer writes the whole "
            "report at the end of its fit" if trainer else str(error)
        )  # fmt: skip
        found.notes.append(f"There are no figures, pictures and layers: {reason}.")
    if not found.history and found.meta:
        found.history = found.meta.get("history", [])
        if found.history:
            found.notes.append(f"{rundir.METRICS_FILE} has no rows; the history is that of the checkpoint.")


def _meta_of(path: Path) -> Meta:
    """The meta of the best checkpoint that has a good one; {} without one."""
    try:
        with Checkpoints(path, read_only=True) as checkpoints:
            return checkpoints.first_good(checkpoints.ranked(), checkpoints.restore_meta)
    except UserError:
        return {}


def _evaluate(found: Found, own: Own | None, read: Read) -> None:
    """The data, and the figures of its test part, or else of its validation part."""
    if found.opened is None:
        return
    try:
        found.dataset = own.dataset if own else read(found.opened)
    except UserError as error:
        found.notes.append(f"There are no figures and no pictures: the data cannot be read ({error}).")
        return
    if set(found.dataset.parts) == {"train"}:
        found.notes.append("There are no figures: the data has neither a test nor a validation part.")
        return
    part = pick_part(found.dataset, "", found.dataset.name)
    try:
        with enough_memory():
            averaged = found.config is not None and found.config.run.flip_averaging
            found.evaluation = evaluate(found.opened, found.dataset, part, mirror=averaged)
    except UserError as error:
        found.notes.append(f"There are no figures: the evaluation failed ({error}).")


def _report(found: Found, own: Own | None) -> Report:
    arch = found.meta.get("arch", {}).get("name") or (found.config.arch if found.config else "")
    model = arch or found.meta.get("model", "").rpartition(".")[2].strip("'>") or "network"
    name = found.meta.get("data", {}).get("name") or (rundir.data_name(found.config.data) if found.config else "")
    options = options_of(found.config)
    return Report(
        title=f"{model} on {name}" if name else model,
        folder=str(found.path),
        facts=tuple(facts_of(found)),
        about=tuple(about(found)),
        changed=tuple(option for option in options if option.value != option.default),
        options=options,
        overrides=tuple(map(override_words, found.overrides)),
        history=tuple(found.history),
        evaluated=evaluated_of(found),
        augmented=augmented_of(found, own),
        layers=layers_of(found),
        command=command_of(found),
        notes=tuple(found.notes),  # last: the others add to them
    )


def evaluated_of(found: Found) -> Evaluated | None:
    """The figures with the pictures of the most confident mistakes."""
    evaluation = found.evaluation
    if evaluation is None or found.opened is None:
        return None
    names, held = found.opened.predictor.class_names, evaluation.figures
    mistakes = []
    for number in held.mistakes[:MISTAKES]:
        predicted = int(evaluation.probabilities[number].argmax())
        mistakes.append(
            Mistake(
                data_uri(evaluation.arrays.images[number]),
                int(number),
                names[evaluation.arrays.labels[number]],
                names[predicted],
                float(evaluation.probabilities[number, predicted]),
            )
        )
    return Evaluated(evaluation.part, found.opened.checkpoint, held, tuple(mistakes))


@without_x64()
def augmented_of(found: Found, own: Own | None) -> tuple[Picture, ...]:
    """The first pictures of the first batch, with the random numbers that they had there."""
    if found.dataset is None:
        return ()
    if own and own.augment is not None:
        preprocess, seed, batch = own.augment, own.seed, own.batch_size
    elif found.config:
        data = found.config.data
        size = (data.image_size, data.image_size) if data.image_size else None
        size = size_in(checked_sizes(resizings(data.sizes)), 1) or size
        preprocess = Preprocess(size, None, build.make_augment(data))
        seed, batch = found.config.seed, found.config.batch_size
    else:
        return ()
    rows = epoch_rows(seed, 0, len(found.dataset.train.labels), batch, 1)[0, 0, :AUGMENTED]
    pictures, labels = preview(preprocess, found.dataset, rows, seed=seed, step=0, epoch=0)
    names = found.dataset.class_names
    return tuple(
        Picture(data_uri(picture), int(row), label_text(label, names))
        for picture, row, label in zip(pictures, rows, labels, strict=True)
    )


def label_text(label: np.ndarray, names: Sequence[str]) -> str:
    """The name of a class, or of each class of a distribution (K,) with its share in percent, the largest first."""
    if not label.ndim:
        return names[int(label)]
    classes = [int(k) for k in np.argsort(-label, kind="stable") if label[k] > 0]
    return names[classes[0]] if len(classes) == 1 else ", ".join(f"{label[k]:.0%} {names[k]}" for k in classes)


def layers_of(found: Found) -> tuple[tuple[str, str, int], ...]:
    """The layer table for one image."""
    if found.opened is None:
        return ()
    predictor = found.opened.predictor
    size = predictor.preprocess.image_size or predictor.image_shape[:2]
    summary = layer_summary(predictor.model, (1, *size, predictor.image_shape[-1]))
    return tuple((row.layer, str(row.output_shape), row.parameters) for row in summary)


def command_of(found: Found) -> str:
    """The command line that repeats a run of train.py; "" and a note if there is none."""
    if found.config is None:
        return ""
    try:
        command = repeat.command_of(found.config)
        grown = found.meta.get("arch") and found.meta["arch"]["name"] != get_arch(found.config.arch).name
    except UserError as error:
        found.notes.append(f"There is no command that repeats the run: {error}.")
        return ""
    if grown and not found.config.model.grow:
        found.notes.append("The command repeats the recipe alone: `grow` made this run from another one.")
    return command


def same_data(reads: dict[Any, ImageDataset]) -> Read:
    """A reader that reads the data of several runs once, if their configs name the same."""

    def read(opened: Opened) -> ImageDataset:
        key = (opened.config.data, opened.config.seed) if opened.config else opened.path
        if key not in reads:
            reads[key] = own_data(opened)
        return check_digest(opened, reads[key])

    return read
