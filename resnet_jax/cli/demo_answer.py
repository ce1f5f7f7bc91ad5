"""What the demo page shows for a picture: probabilities, a Grad-CAM map, and a sentence. It needs no Gradio."""

import os
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from resnet_jax.errors import ConfigError, UserError
from resnet_jax.models import grad_cam
from resnet_jax.ops.precision import without_x64
from resnet_jax.reporting.heatmap import overlay
from resnet_jax.runs.photos import as_trained, is_light_on_dark, open_picture
from resnet_jax.runs.predictor import Predictor

SIDE = 336  # pixels of the pictures on the page: small ones are enlarged, so that each pixel is a square


class Answer(NamedTuple):
    """What the page shows. note: a sentence in plain text.

    probabilities: of every class by its name; seen: (H, W, 3) uint8, the picture as the network sees it; overlay: the
    same with the map over it. All three are None if there is no prediction; the note is then the reason.
    """

    probabilities: dict[str, float] | None
    seen: np.ndarray | None
    overlay: np.ndarray | None
    note: str


class Explainer:
    """The network of a run, ready to answer for one picture after the other.

    name: of the run, for the page. ConfigError if the network takes neither gray nor RGB pictures.
    """

    def __init__(self, predictor: Predictor, run_dir: str | os.PathLike[str]):
        channels = predictor.image_shape[-1]
        if channels not in (1, 3):
            raise ConfigError(f"{run_dir}: its images have {channels} channels; a picture has 1 or 3")
        network = predictor.arch.name if predictor.arch else type(predictor.model).__name__
        self.name = f"{network}, {Path(run_dir).resolve().name}"
        self.predictor = predictor
        self.light_on_dark = is_light_on_dark(predictor)
        model, preprocess = predictor.model, predictor.preprocess
        self._map = jax.jit(lambda v, images, classes: grad_cam(model, v, preprocess.evaluate(images), classes))

    def warm_up(self) -> None:
        """Compile both programs, so that the first picture of a user does not wait."""
        picture = np.zeros(self.predictor.image_shape, np.uint8)
        picture[: len(picture) // 2] = 255
        self.of_pixels(picture)

    def of_file(self, path: str | os.PathLike[str]) -> Answer:
        """The answer for a file; a file that is not a picture gives a note."""
        try:
            return self.of_pixels(open_picture(path, self.predictor.image_shape[-1]))
        except UserError as error:
            folder = os.path.join(os.path.dirname(os.fspath(path)), "")  # Gradio's: it says nothing to the user
            return Answer(None, None, None, str(error).replace(folder, ""))

    @without_x64()
    def of_pixels(self, picture: np.ndarray) -> Answer:
        """The answer for (H, W, C) uint8 of any size; C is 1, or 3 for RGB."""
        if picture.min() == picture.max():
            return Answer(None, None, None, "All pixels have the same colour, so there is nothing to classify.")
        photo = as_trained(picture, self.predictor)
        (probabilities,) = self.predictor(photo.pixels[None])
        (values,) = self._map(self.predictor.variables, photo.pixels[None], int(probabilities.argmax()))
        seen = enlarged(photo.pixels)
        named = dict(zip(self.predictor.class_names, map(float, probabilities), strict=True))
        return Answer(named, seen, overlay(seen, np.asarray(values)), self._note(photo.inverted, photo.changes))

    def _note(self, inverted: bool, changes: tuple[str, ...]) -> str:
        """Whether the picture was inverted, and why; then everything else that was done to it."""
        if inverted:
            first = "The picture was inverted: its background is light, and the training images are light on black."
        elif self.light_on_dark:
            first = "The picture was not inverted: its background is dark, as in the training images."
        else:
            first = "The picture was not inverted."
        others = [change for change in changes if not change.startswith("inverted")]
        return first + (f" Also: {', '.join(others)}." if others else "")


def of_upload(explainer: Explainer, path: str) -> Answer:
    """The answer for a picture that the page received. A client can send any path: others are not opened."""
    folder = os.environ.get("GRADIO_TEMP_DIR")
    if not folder or not Path(path).resolve().is_relative_to(Path(folder).resolve()):
        return Answer(None, None, None, "This is not a picture that the page received.")
    return explainer.of_file(path)


def enlarged(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 1 or 3) as (k H, k W, 3): each pixel becomes a square, with the largest k for which a side is SIDE."""
    times = max(1, SIDE // max(pixels.shape[:2]))
    large = pixels.repeat(times, 0).repeat(times, 1)
    return np.broadcast_to(large, (*large.shape[:2], 3))
