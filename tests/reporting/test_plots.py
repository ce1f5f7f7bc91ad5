"""The PNG files: that they are pictures of a sensible size, whatever the rows hold, and leave Matplotlib alone."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from resnet_jax.reporting.figures import figures
from resnet_jax.reporting.plots import MADE_BY, confusion_png, curves_png

ROW = {"train_loss": 1.0, "train_accuracy": 0.5, "test_loss": 2.0, "test_accuracy": 0.25, "learning_rate": 0.1}
HISTORIES = {
    "two": [{"epoch": 1, **ROW}, {"epoch": 2, **ROW}],
    "one": [{"epoch": 1, "train_loss": 1.0}],
    "nan": [{"epoch": 1, "train_loss": float("nan")}, {"epoch": 2, "train_loss": 1.0}],
    "none": [],
}


def picture(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    assert image.info["Software"] == MADE_BY
    return image


@pytest.mark.parametrize("name", HISTORIES)
def test_curves(name):
    width, height = picture(curves_png(HISTORIES[name])).size
    assert width / height == pytest.approx({"two": 4}.get(name, 4 / 3), rel=0.02)


@pytest.mark.parametrize("names", [("a", "b"), ("$x_1$", "\u732b"), tuple(map(str, range(70)))])
def test_a_confusion_matrix_of_any_names(names):
    """Not as formulas; a letter that the font lacks is no warning."""
    probabilities = np.eye(len(names), dtype=np.float32)
    image = picture(confusion_png(figures(probabilities, np.arange(len(names)), names)))
    assert max(image.size) < 4000


def test_pyplot_is_not_imported():
    code = (
        "import sys; from resnet_jax.reporting import plots; plots.curves_png([{'epoch': 1, 'train_loss': 1.0}]); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
