"""A confusion matrix as a picture, drawn by Pillow, which every installation has.

The TensorBoard callback uses it, because the extra `tensorboard` does not install Matplotlib. A report has Matplotlib:
plots.confusion_png draws its picture.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

NUMBERS = 20  # classes up to which the cells show their counts
NAMES = 60  # classes up to which rows and columns have names
LONGEST = 14  # characters of a name
DARK, LIGHT = (8, 48, 107), (255, 255, 255)


def confusion_picture(confusion: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """The picture (H, W, 3) uint8 of counts (classes, classes): rows are true classes, columns predicted ones.

    A cell is the darker, the larger its share of the images of its row.
    """
    classes = len(confusion)
    cell = 40 if classes <= NUMBERS else 14 if classes <= NAMES else max(1, 800 // classes)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    colours = np.rint(np.array(LIGHT) + shares[..., None] * (np.array(DARK) - LIGHT)).astype(np.uint8)
    squares = colours.repeat(cell, 0).repeat(cell, 1)
    margin = 8 * LONGEST if classes <= NAMES else 20
    picture = Image.new("RGB", (margin + classes * cell, margin + classes * cell), LIGHT)
    picture.paste(Image.fromarray(squares), (margin, margin))
    if classes <= NAMES:
        _write_names(picture, class_names, cell, margin)
    if classes <= NUMBERS:
        _write_counts(picture, confusion, shares, cell, margin)
    return np.asarray(picture)


def _write_names(picture: Image.Image, names: Sequence[str], cell: int, margin: int) -> None:
    """The true classes at the left, the predicted ones above, from bottom to top."""
    picture.paste(_text("true \\ predicted", margin, 16), (0, 0))
    for i, name in enumerate(names):
        short = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
        picture.paste(_text(short, margin - 4, cell), (0, margin + i * cell))
        column = _text(short, margin - 4, cell, right=False).rotate(90, expand=True)
        picture.paste(column, (margin + i * cell, 0))


def _write_counts(picture: Image.Image, confusion: np.ndarray, shares: np.ndarray, cell: int, margin: int) -> None:
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for (row, column), count in np.ndenumerate(confusion):
        centre = (margin + (column + 0.5) * cell, margin + (row + 0.5) * cell)
        colour = LIGHT if shares[row, column] > 0.5 else DARK
        draw.text(centre, str(count), fill=colour, font=font, anchor="mm")


def _text(text: str, width: int, height: int, right: bool = True) -> Image.Image:
    """Text at the right or the left end of a white strip."""
    strip = Image.new("RGB", (width, height), LIGHT)
    font = ImageFont.load_default(min(12, height - 2))
    place, anchor = (width - 2, "rm") if right else (2, "lm")
    ImageDraw.Draw(strip).text((place, height / 2), text, fill=(0, 0, 0), font=font, anchor=anchor)
    return strip
