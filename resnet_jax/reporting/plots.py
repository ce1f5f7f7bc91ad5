"""Curves and the confusion matrix as PNG files, by Matplotlib: without pyplot, which keeps state in the process."""

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from resnet_jax.reporting.charts import curve
from resnet_jax.reporting.figures import Figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MADE_BY = "resnet_jax report"  # in the metadata of each file
COLOURS = ("#2257c5", "#b3530a", "#1a7a4c")
PARTS = ("train", "validation", "test")
MOST_CLASSES = 60  # of a confusion matrix: with more of them the names cannot be read


def curves_png(history: Sequence[dict[str, Any]]) -> bytes:
    """Loss, accuracy and, if the rows have it, the learning rate over the epochs."""
    from matplotlib.figure import Figure

    groups = [("loss", [f"{part}_loss" for part in PARTS]), ("accuracy", [f"{part}_accuracy" for part in PARTS])]
    groups.append(("learning rate", ["learning_rate"]))
    groups = [(name, keys) for name, keys in groups if any(curve(history, key, key).points for key in keys)]
    figure = Figure(figsize=(4 * max(len(groups), 1), 3), layout="constrained")
    for axes, (name, keys) in zip(figure.subplots(1, max(len(groups), 1), squeeze=False)[0], groups, strict=False):
        for colour, key in zip(COLOURS, keys, strict=False):
            points = curve(history, key, key.removesuffix(f"_{name}")).points
            if points:
                label = key.removesuffix(f"_{name}")
                axes.plot(*zip(*points, strict=True), color=colour, marker="." if len(points) < 20 else "", label=label)
        axes.set(title=name, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(keys) > 1:
            axes.legend(frameon=False)
    return _png(figure)


def confusion_png(figures: Figures) -> bytes:
    """The confusion matrix: rows are true classes, the colour is the share of the row."""
    from matplotlib.figure import Figure

    names = [one.name for one in figures.classes]
    shares = figures.confusion / figures.confusion.sum(1, keepdims=True).clip(1)
    side = 2 + 0.42 * min(len(names), MOST_CLASSES)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="true class", title=f"accuracy {figures.accuracy:.4f}")
    if len(names) <= MOST_CLASSES:
        places = range(len(names))
        axes.set_xticks(places, labels=names, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set_yticks(places, labels=names, parse_math=False)
        for i in places:
            for j in places:
                if figures.confusion[i, j]:
                    colour = "white" if shares[i, j] > 0.55 else "#1b1f27"
                    text = str(figures.confusion[i, j])
                    axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
    return _png(figure)


def _png(figure: "Figure") -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # the font lacks a letter of a class name
        figure.savefig(content, format="png", dpi=110, metadata={"Software": MADE_BY})
    return content.getvalue()
