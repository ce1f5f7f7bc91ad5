"""The measured results of the recipes: the sweeps in results/, and what train.py says of them."""

import contextlib
import dataclasses

from tqdm import tqdm

from resnet_jax.errors import UserError
from resnet_jax.runs.config import Config
from resnet_jax.runs.flags import changed, load_recipe, own_files
from resnet_jax.runs.sweep_file import Record, accuracy_text, read_record, seconds_of
from resnet_jax.training.display import duration
from resnet_jax.training.loop import Loop

CHAPTER, QUICK = "resnet18", "quick"  # recipes


def read_results() -> dict[str, Record]:
    """The sweeps in results/, by name of the file. ConfigError for a file that holds none."""
    return {path.stem: read_record(path) for path in own_files("results", ".json")}


def of_recipes(results: dict[str, Record]) -> dict[str, Record]:
    """The sweeps of recipes without other flags that have a test accuracy, by recipe."""
    found = {record["recipe"]: record for record in results.values() if not record["flags"]}
    return {recipe: record for recipe, record in found.items() if record["test_accuracy"]}


def reached(record: Record) -> str:
    """Accuracy and time of a sweep's runs, in words."""
    return f"{accuracy_text(record['test_accuracy'])} in {duration(seconds_of(record))}"


def advice(platform: str, measured: dict[str, Record]) -> str:
    """Which recipe is quicker or better than the chapter's on such a device; "" if none is known.

    measured: the sweeps of recipes. On a CPU it is the recipe quick, elsewhere the one with the highest accuracy.
    """
    own = measured.get(CHAPTER)
    if platform == "cpu":
        other = QUICK
    else:
        data = load_recipe(CHAPTER).data.dataset
        same = [recipe for recipe, record in measured.items() if record["config"]["data"]["dataset"] == data]
        other = max(same, key=lambda recipe: measured[recipe]["test_accuracy"]["mean"], default=CHAPTER)
    if other == CHAPTER:
        return ""
    what = "is quicker on a CPU" if platform == "cpu" else "is better"
    if other not in measured:
        return f"--config {other} {what}: a smaller network and images of 28x28 pixels, in minutes"
    this = f"; this recipe: {reached(own)}" if own else ""
    return f"--config {other} {what}: measured test accuracy {reached(measured[other])}{this}"


class Advice:
    """A callback that prints the advice before the chapter's own training."""

    def on_fit_start(self, loop: Loop) -> None:
        """Print it, unless a run is resumed."""
        if loop.step == 0 and (line := advice(loop.devices[0].platform, measured())):
            tqdm.write(line)


def measured() -> dict[str, Record]:
    """The sweeps of recipes; none if a file of results/ is damaged, since training does not depend on it."""
    with contextlib.suppress(UserError):
        return of_recipes(read_results())
    return {}


def is_chapters(config: Config) -> bool:
    """Whether a run trains the chapter's recipe without a change."""
    recipe = load_recipe(CHAPTER)
    same = changed(dataclasses.replace(config, run=recipe.run), {"config": recipe.config, "seed": recipe.seed})
    return dataclasses.replace(same, data=dataclasses.replace(same.data, data_dir="", source_dir="")) == recipe
