"""evaluate: the accuracy, calibration and confusions of a trained network."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from resnet_jax.cli.options import notes_apart, print_json
from resnet_jax.errors import ConfigError
from resnet_jax.runs.argv import Positional, parse_as
from resnet_jax.runs.folders import check_folder
from resnet_jax.runs.values import PathText

if TYPE_CHECKING:
    from resnet_jax.runs.evaluation import Evaluation, Opened

EXAMPLES = (
    "runs/NAME",
    "runs/NAME --part train",
    "runs/NAME --flip-averaging",
    "runs/NAME --data-folder pictures/ --json > figures.json",
)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate a run's best checkpoint on its own data, on a named data set or on a folder of pictures."""

    run: Annotated[PathText, Positional("RUN")]
    """The folder of a run, or a folder that convert made."""
    dataset: str = ""
    """A named data set with the same classes, such as fashion_mnist. Empty: the data of the run."""
    data_folder: PathText = ""
    """A folder of pictures whose class folders are classes of the run: PATH/CLASS/*.png, or test/ above the classes.
    The pictures are prepared as predict prepares them: for runs on fashion_mnist, mnist and kmnist those with a light
    background are inverted."""
    part: Literal["auto", "test", "validation", "train"] = "auto"
    """The part of the data. auto: test, or else validation; all pictures of a folder without parts."""
    flip_averaging: bool = False
    """Evaluate a second time, with the probabilities of each image and its mirror image averaged, and print these
    figures beside the others."""
    json: bool = False
    """Print one JSON object."""


def evaluate(argv: Sequence[str], prog: str) -> None:
    """Print the figures."""
    asked = parse_as(Evaluate, argv, prog, EXAMPLES)
    with notes_apart(asked.json):
        if asked.dataset and asked.data_folder:
            raise ConfigError("--dataset and --data-folder: evaluate one of them; leave the other out")
        opened, found = run_evaluation(asked)
    if asked.json:
        print_json(as_dict(opened, found))
    else:
        print(as_text(opened, found))


def run_evaluation(asked: Evaluate) -> tuple["Opened", "Evaluation"]:
    """Open the run, read the data and predict."""
    from resnet_jax.runs import evaluation

    check_folder(Path(asked.run))
    opened, part = evaluation.open_run(Path(asked.run)), "" if asked.part == "auto" else asked.part
    whole, changes = False, {}
    if asked.data_folder:
        dataset, whole, changes = evaluation.folder_data(opened, asked.data_folder)
    else:
        dataset = evaluation.named_data(opened, asked.dataset) if asked.dataset else evaluation.own_data(opened)
    if whole and part not in ("", "train"):
        raise ConfigError(f"--part {part}: {asked.data_folder} has no {part} folder; leave --part out for all pictures")
    name = asked.data_folder or asked.dataset  # "": the run's own data
    part = "train" if whole else evaluation.pick_part(dataset, part, name or dataset.name)
    found = evaluation.evaluate(opened, dataset, part, name, mirror=asked.flip_averaging)
    shown = "all pictures" if whole else part
    return opened, dataclasses.replace(found, part=shown, changes=changes.get(part, {}))


def as_dict(opened: "Opened", found: "Evaluation") -> dict[str, Any]:
    """The figures as plain values."""
    from resnet_jax.reporting.figures import confusions
    from resnet_jax.runs.photos import INVERTED

    return {
        "run": str(opened.path),
        "data": found.name,
        "part": found.part,
        "step": opened.predictor.step,
        "epoch": opened.meta.get("epoch"),
        "recorded_accuracy": found.recorded,
        "inverted": found.changes.get(INVERTED, 0),
        "changes": dict(found.changes),
        "class_names": list(opened.predictor.class_names),
        **found.figures.as_dict(),
        **averaged_values(found),
        "confusions": [list(pair) for pair in confusions(found.figures)],
    }


def as_text(opened: "Opened", found: "Evaluation") -> str:
    """The figures as lines."""
    from resnet_jax.reporting.figures import confusions

    held = found.figures
    width = max(len("class"), *(len(one.name) for one in held.classes))
    lines = [
        f"{opened.path}: {opened.checkpoint[:1].lower()}{opened.checkpoint[1:-1]}",
        f"{found.part} of {found.name}: accuracy {held.accuracy:.4f} ({held.correct} of {held.count}), "
        f"loss {held.loss:.4f}, expected calibration error {held.ece:.4f}",
        *averaged_line(found),
        *recorded_line(found),
        *changes_line(found),
        "",
        f"{'class':<{width}}  images  precision  recall      F1",
    ]
    for one in held.classes:
        shares = (f"{'-' if share is None else f'{share:.4f}'}" for share in (one.precision, one.recall, one.f1))
        lines.append("{:<{}}  {:>6}  {:>9}  {:>6}  {:>6}".format(one.name, width, one.count, *shares))
    if pairs := confusions(held):
        lines += ["", "most frequent confusions (true class, predicted class, images, share of the true class)"]
        lines += [f"  {true} -> {predicted}: {count} ({100 * share:.1f} %)" for true, predicted, count, share in pairs]
    return "\n".join(lines)


def averaged_values(found: "Evaluation") -> dict[str, Any]:
    """The figures of flip averaging as plain values; {} without it."""
    held = found.averaged
    if held is None:
        return {}
    values = {"accuracy": held.accuracy, "correct": held.correct, "count": held.count, "loss": held.loss}
    return {"flip_averaging": values | {"ece": held.ece}}


def averaged_line(found: "Evaluation") -> list[str]:
    """The figures of flip averaging."""
    held = found.averaged
    if held is None:
        return []
    return [
        f"with flip averaging: accuracy {held.accuracy:.4f} ({held.correct} of {held.count}), loss {held.loss:.4f}, "
        f"expected calibration error {held.ece:.4f}"
    ]


def recorded_line(found: "Evaluation") -> list[str]:
    """How the accuracy compares with the one that the run itself measured."""
    if found.recorded is None:
        return []
    correct, held = round(found.recorded * found.figures.count), found.figures
    same = "the same" if correct == held.correct else f"{abs(correct - held.correct)} images differ"
    return [f"the run itself measured {found.recorded:.4f} with these weights ({correct} of {held.count}): {same}"]


def changes_line(found: "Evaluation") -> list[str]:
    """What was done to the pictures of a folder, as `predict` does it."""
    if not found.changes:
        return []
    counts = ", ".join(f"{change}: {count}" for change, count in found.changes.items())
    return [f"pictures that were changed as predict changes them, of {found.figures.count}: {counts}"]
