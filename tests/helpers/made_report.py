"""Reports of made figures, as large as those of real runs: nothing is trained."""

import dataclasses

import numpy as np

from resnet_jax.data import DATASETS
from resnet_jax.reporting.figures import figures
from resnet_jax.reporting.page import Evaluated, Fact, Mistake, Option, Picture, Report
from resnet_jax.reporting.thumbnails import data_uri

NAMES = DATASETS["fashion_mnist"].class_names
PARTS = ("train", "validation", "test")


def make_report(folder: str = "runs/resnet18-fashion_mnist-2026-11-23-19-44-12", seed: int = 0) -> Report:
    """A report with every section, of 2000 made predictions of 10 classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, 2000)
    logits = rng.normal(0, 1.4, (2000, 10))
    logits[np.arange(2000), labels] += 4
    probabilities = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
    held = figures(probabilities, labels, NAMES)
    pictures = [data_uri(rng.integers(0, 256, (28, 28, 1)).astype(np.uint8)) for _ in range(46)]
    mistakes = [
        Mistake(picture, int(i), NAMES[labels[i]], NAMES[probabilities[i].argmax()], float(probabilities[i].max()))
        for picture, i in zip(pictures, held.mistakes[:36], strict=False)
    ]
    rows = [
        {"epoch": i, "step": 469 * i, **{f"{part}_loss": (2 + k) / (i + k) for k, part in enumerate(PARTS)}}
        | {f"{part}_accuracy": 1 - 0.4 / (i + k) for k, part in enumerate(PARTS)}
        | {"learning_rate": 0.1 * (1 - i / 8), "images_per_second": 1652.3, "train_seconds": 36.3, "eval_seconds": 2.2}
        for i in range(1, 8)
    ]
    options = tuple(Option(f"--option-{i}", "a long value " * (i % 3), "0") for i in range(40))
    return Report(
        title="resnet18 on fashion_mnist",
        folder=folder,
        facts=(
            Fact("Test accuracy", "91.87\u00a0%", "9,187 of 10,000 images"),
            *(Fact(name, "0.2195", "mean cross-entropy in nats") for name in ("Loss", "Calibration error", "Epochs")),
        ),
        about=(
            Fact("Digest of the data", "0123456789abcdef" * 4, "SHA-256"),
            Fact("Hardware", "cpu: 1 x cpu, bfloat16"),
        ),
        notes=("A note that says what is missing, and why, in a long line that a phone has to break: " + "x" * 80,),
        changed=options[:5],
        options=options,
        overrides=("at step 3: --learning-rate from 0.05 to 0.01",),
        history=tuple(rows),
        evaluated=Evaluated("test", "Checkpoint of step 2345, after 5 epochs: the latest one.", held, tuple(mistakes)),
        augmented=tuple(Picture(picture, i, NAMES[i % 10]) for i, picture in enumerate(pictures[36:])),
        layers=tuple((f"stage{i}", "(1, 24, 24, 64)", 147_968) for i in range(6)),
        command="python train.py --arch resnet18 \\\n    --data-dir /a/very/long/path/" + "folder/" * 20,
    )


def other_report() -> Report:
    """Another run, with another history."""
    report = make_report("runs/another-run-with-a-long-name-that-does-not-fit-the-screen-of-a-phone", 1)
    changed = (dataclasses.replace(report.options[0], value="another"), *report.options[1:])
    return dataclasses.replace(report, options=changed, history=report.history[:5])
