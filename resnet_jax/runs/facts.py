"""What was found of a run, and the words and numbers that a report says of it."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from resnet_jax.data import ImageDataset
from resnet_jax.reporting.page import Fact, Option
from resnet_jax.runs.argv import flags_of
from resnet_jax.runs.config import Config
from resnet_jax.runs.evaluation import Evaluation, Opened
from resnet_jax.runs.repeat import number_text
from resnet_jax.runs.stored import Meta
from resnet_jax.runs.values import flag_text
from resnet_jax.training.display import duration


@dataclasses.dataclass
class Found:
    """What was found of a run; notes say what is missing, and why."""

    path: Path
    notes: list[str]
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    config: Config | None = None
    overrides: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    meta: Meta = dataclasses.field(default_factory=dict)
    opened: Opened | None = None
    dataset: ImageDataset | None = None
    evaluation: Evaluation | None = None


def facts_of(found: Found) -> list[Fact]:
    """The numbers at the top of the page."""
    facts, rows = [], found.history
    last = rows[-1] if rows else {}
    if found.evaluation and found.opened:
        held = found.evaluation.figures
        count = f"{held.correct:,} of {held.count:,} images"
        facts.append(Fact(f"{found.evaluation.part.capitalize()} accuracy", f"{100 * held.accuracy:.2f} %", count))
        if flipped := found.evaluation.averaged:
            note = f"{flipped.correct:,} of {flipped.count:,} images; probabilities of image and mirror image averaged"
            facts.append(Fact("With flip averaging", f"{100 * flipped.accuracy:.2f} %", note))
        facts.append(Fact("Loss", f"{held.loss:.4f}", "mean cross-entropy in nats"))
        facts.append(Fact("Calibration error", f"{100 * held.ece:.2f} %", "ECE over 15 bins"))
    else:
        for part in ("test", "validation", "train"):
            if f"{part}_accuracy" in last:
                accuracy = f"{100 * last[f'{part}_accuracy']:.2f} %"
                facts.append(Fact(f"{part.capitalize()} accuracy", accuracy, f"of epoch {last.get('epoch')}"))
    epochs = f"{len(rows)} of {found.config.epochs}" if found.config else str(len(rows))
    facts.append(Fact("Epochs", epochs, f"{last['step']:,} steps" if "step" in last else ""))
    timed = [row for row in rows if {"train_seconds", "eval_seconds", "images_per_second"} <= row.keys()]
    if timed:
        train, evaluation = (sum(row[f"{part}_seconds"] for row in timed) for part in ("train", "eval"))
        facts.append(Fact("Time", duration(train + evaluation), f"{duration(evaluation)} of it for evaluation"))
        images = sum(row["images_per_second"] * row["train_seconds"] for row in timed)
        facts.append(Fact("Images per second", f"{images / train:,.0f}", "in training"))
    if found.opened:
        leaves = jax.tree.leaves(found.opened.predictor.variables["params"])
        facts.append(Fact("Parameters", f"{sum(leaf.size for leaf in leaves):,}"))
    return facts


def about(found: Found) -> list[Fact]:
    """Checkpoint, data, hardware and versions."""
    facts, meta = [], found.meta
    if found.opened:
        recorded = found.evaluation and found.evaluation.recorded
        same = f"The run itself measured {100 * recorded:.2f} % with it." if recorded is not None else ""
        facts.append(Fact("Weights", found.opened.checkpoint, same))
    if found.dataset:
        facts.append(Fact("Data", found.dataset.describe()))
        facts.append(Fact("Digest of the data", found.dataset.digest, "SHA-256 of class names, images and labels"))
    elif meta.get("data"):
        digest = meta["data"].get("digest")
        facts.append(Fact("Data", f"{meta['data']['name']}, {meta['data']['num_train']:,} training images"))
        facts += [Fact("Digest of the data", digest)] if digest else []
    hardware = meta.get("hardware", {})
    if meta:
        facts.append(Fact("Hardware", hardware.get("devices", "not recorded"), hardware.get("cpu", "")))
        facts.append(Fact("Precision", f"{meta.get('dtype', 'not recorded')} activations"))
        facts.append(
            Fact("Versions", ", ".join(f"{name} {version}" for name, version in meta.get("versions", {}).items()))
        )
    return facts


def options_of(config: Config | None) -> tuple[Option, ...]:
    """Every option of a config, with its default."""
    if config is None:
        return ()
    held = []
    for flag in flags_of(Config).values():
        value = getattr(getattr(config, flag.part) if flag.part else config, flag.name)
        held.append(Option(flag.text, shown(value), shown(flag.default)))
    return tuple(held)


def shown(value: Any) -> str:
    """The value of an option as text."""
    if isinstance(value, tuple):
        return " ".join(map(shown, value)) or "none"
    if isinstance(value, float):
        return number_text(value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) or "empty"


def override_words(override: dict[str, Any]) -> str:
    """What --override changed at a step, in words."""
    changes = (f"{flag_text(name)} from {old} to {new}" for name, (old, new) in override["changes"].items())
    return f"at step {override['step']}: {', '.join(changes)}"
