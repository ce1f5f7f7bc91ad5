"""TensorBoard: a callback that writes curves, augmented images and the confusion matrix of a fit."""

import numbers
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from jax import lax
from tqdm import tqdm

from resnet_jax.arguments import whole
from resnet_jax.paths import user_path
from resnet_jax.reporting.confusion_picture import confusion_picture
from resnet_jax.reporting.events_file import EventsFile, check_installed, events_files
from resnet_jax.reporting.figures import confusion_matrix
from resnet_jax.training.loop import EVALUATED, Loop
from resnet_jax.training.metrics import Row
from resnet_jax.training.parallel import group_of, on_devices, shard
from resnet_jax.training.preview import preview
from resnet_jax.training.program import Program
from resnet_jax.training.step import epoch_rows, eval_rows, predict

COLUMNS = 8  # of the picture of augmented images
NOT_CURVES = ("epoch", "step")


class TensorBoard:
    """Write a fit into a folder for TensorBoard: `tensorboard --logdir FOLDER` shows it.

    log_dir: the folder, which is made when the fit starts. every: steps between two points of the curves inside an
    epoch. images: how many augmented training images to show, 0 for none. confusion: whether to write the confusion
    matrix after each epoch, of the validation part, else of the test part; it costs one more evaluation of that part.

    The horizontal axis is loop.step. Each epoch writes the numbers of its row: loss/train, loss/validation, loss/test,
    accuracy/..., learning_rate, images_per_second, and keys of your own. Every `every` steps there are
    loss/train_so_far and accuracy/train_so_far, means of the epoch so far, and learning_rate if the Trainer has its
    schedule. images/augmented holds the first images of the fit's first step, augmented as that step does it, before
    normalisation. Nothing of the training changes. A resumed fit continues the curves: TensorBoard drops the points
    after the checkpoint. Another fit that starts at step 0 in the same folder replaces the earlier one in TensorBoard.

    Raises ConfigError for invalid arguments and without the package tensorboardX (the extra `tensorboard`), and during
    the fit TrainingError if the folder cannot be written to.
    """

    def __init__(
        self, log_dir: str | os.PathLike[str], *, every: int = 50, images: int = 16, confusion: bool = True
    ) -> None:
        check_installed("TensorBoard")
        self.log_dir = user_path(log_dir, "log_dir")
        self.every = whole("TensorBoard: every", every, 1)
        self.images = whole("TensorBoard: images", images, 0)
        self.confusion = confusion
        self._file: EventsFile | None = None
        self._last = 0  # the step of the epoch up to which its curves are written
        self._predict: tuple[Program, Callable[..., Any]] | None = None

    def on_fit_start(self, loop: Loop) -> None:
        """Make the file. A fit that is resumed inside an epoch writes the points of that step again."""
        if loop.step == 0 and events_files(self.log_dir):
            tqdm.write(f"{self.log_dir} holds events of an earlier fit: TensorBoard shows this fit instead")
        self._file = EventsFile(self.log_dir, loop.step if loop.position else loop.step + 1)
        self._last = max(loop.position - loop.steps_per_call, 0)
        if self.images and not loop.finished:
            self._file.image("images/augmented", grid(augmented(loop, self.images)), loop.step + 1)
            self._file.flush()

    def on_step_end(self, loop: Loop) -> None:
        """Write the points of the epoch so far, if it is time. The sums are those of the calls before this one."""
        done = loop.sums.count // loop.batch_size
        if self._file is None or done // self.every <= self._last // self.every:
            return
        step = len(loop.history) * loop.steps + done
        self._last = done
        self._file.scalar("loss/train_so_far", loop.sums.mean_loss, step)
        self._file.scalar("accuracy/train_so_far", loop.sums.accuracy, step)
        if loop.learning_rate is not None:
            self._file.scalar("learning_rate", np.asarray(loop.learning_rate(step - 1)).item(), step)

    def on_epoch_end(self, loop: Loop) -> None:
        """Write the row of the epoch and the confusion matrix."""
        if self._file is None:
            return
        self._last = 0
        for tag, value in curves(loop.row).items():
            self._file.scalar(tag, value, loop.step)
        parts = [name for name in EVALUATED if getattr(loop.data, name) is not None]
        if self.confusion and parts:
            labels = getattr(loop.data, parts[0]).labels
            matrix = confusion_matrix(self._predictions(loop, parts[0]), labels, loop.data.num_classes)
            self._file.image(f"confusion/{parts[0]}", confusion_picture(matrix, loop.data.class_names), loop.step)
        self._file.flush()

    def on_fit_end(self, loop: Loop) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file = self._predict = None

    def _predictions(self, loop: Loop, name: str) -> np.ndarray:
        """The predicted classes (N,) of a part."""
        if self._predict is None or self._predict[0] is not loop.program:  # growth changes the program
            self._predict = loop.program, make_predict(loop.program)
        data, variables = loop.part(name), loop.state.variables
        rows = eval_rows(len(data.labels), loop.batch_size, len(loop.devices))
        found = [np.asarray(self._predict[1](variables, data, shard(each, loop.devices))) for each in rows]
        return np.concatenate(found)[: len(data.labels)]


def make_predict(program: Program) -> Callable[..., Any]:
    """A call of the devices: (variables, data, rows (devices, B / devices)) -> the predicted classes (B,)."""

    def run(variables, data, rows):
        images = program.preprocess.evaluate(data.images(rows))
        classes = predict(program.model, variables, images).argmax(-1)
        return lax.all_gather(classes, group_of(rows).axes, tiled=True)

    return on_devices(run, program.devices, in_axes=(None, None, 0))


def augmented(loop: Loop, count: int) -> np.ndarray:
    """The first images of the next step, as it augments them: (count or fewer, H, W, C) float32 in [0, 1]."""
    program, epoch = loop.program, len(loop.history)
    order = epoch_rows(program.seed, epoch, len(loop.data.train.labels), loop.batch_size, len(loop.devices))
    rows = order[:, loop.position].reshape(-1)[:count]
    preprocess = program.preprocess_to(loop.train_size)
    images, _ = preview(preprocess, loop.data, rows, seed=program.seed, step=loop.step, epoch=epoch)
    return images


def grid(images: np.ndarray) -> np.ndarray:
    """Images (N, H, W, C) in [0, 1] side by side, in rows of 8: one picture (H', W', C) uint8, on white."""
    count, height, width, channels = images.shape
    columns = min(COLUMNS, count)
    lines = -(-count // columns)
    held = np.ones((lines * columns, height + 1, width + 1, channels), np.float32)
    held[:count, :height, :width] = images.clip(0, 1)
    picture = held.reshape(lines, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    return np.rint(picture.reshape(lines * (height + 1), -1, channels) * 255).astype(np.uint8)


def curves(row: Row) -> dict[str, float]:
    """The numbers of a row by TensorBoard's tag: train_loss is loss/train. Text and other values are left out."""
    found = {}
    for key, value in row.items():
        value = value.item() if getattr(value, "shape", None) == () else value
        if key in NOT_CURVES or isinstance(value, bool) or not isinstance(value, numbers.Real):
            continue
        part, _, metric = key.partition("_")
        known = part in ("train", *EVALUATED) and metric in ("loss", "accuracy")
        found[f"{metric}/{part}" if known else key] = float(value)
    return found
