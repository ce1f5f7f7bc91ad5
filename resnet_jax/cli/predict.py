"""predict: the classes of pictures, by the network of a run."""

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from resnet_jax.cli.options import RunDir, notes_apart, print_json
from resnet_jax.errors import ConfigError, DataError, UserError, one_line
from resnet_jax.runs.argv import Positional, parse_as
from resnet_jax.runs.values import PathText

if TYPE_CHECKING:
    from resnet_jax.runs import Predictor
    from resnet_jax.runs.photos import Photo

Pictures = Annotated[tuple[PathText, ...], Positional("PICTURE")]
INVERT = {"auto": None, "always": True, "never": False}
EXAMPLES = (
    "runs/NAME shirt.png",
    "runs/NAME photo.jpg folder/ --top 3  # every picture of a folder",
    "runs/NAME folder/ --json > classes.json",
    "weights/resnet50 cat.jpg --top 5  # a folder that convert made",
)


@dataclasses.dataclass(frozen=True)
class Predict:
    """Print the most likely classes of pictures. A picture that cannot be read is reported; the others are still
    predicted, and the exit code is 2."""

    run_dir: RunDir
    """The run's folder (its best checkpoint), or a folder that convert made."""
    pictures: Pictures
    """Pictures (PNG, JPEG, WebP, BMP, GIF or TIFF), and folders, which are searched for pictures at any depth."""
    top: int = 1
    """How many classes to print for each picture."""
    invert: Literal["auto", "always", "never"] = "auto"
    """Invert the brightness of pictures. auto: of a picture with a light background, if the run was trained on
    fashion_mnist, mnist or kmnist, whose background is black."""
    json: bool = False
    """Print a JSON list with an object for each picture: path, classes, probabilities, inverted and changes, or path
    and error."""


class Found(NamedTuple):
    """The pictures to read, and how many other files the folders hold."""

    paths: list[str]
    others: int


def predict(argv: Sequence[str], prog: str) -> int:
    """Print the classes of the pictures; returns the exit code: 2 if a picture could not be read."""
    asked = parse_as(Predict, argv, prog, EXAMPLES)
    with notes_apart(asked.json):
        if asked.top < 1:
            raise ConfigError(f"--top {asked.top} must be at least 1")
        found = find(asked.pictures)
        if found.others:
            print(f"skipped {found.others} files that are no pictures")
        rows, failed = [], 0
        for row in predicted(asked, found.paths):
            if "error" in row:
                failed += 1
                print(f"{prog}: {row['error']}", file=sys.stderr)
            elif not asked.json:
                print(line_of(row))
            rows += [row] if asked.json else []
    if asked.json:
        print_json(rows)
    return 2 if failed else 0


def find(given: Sequence[str]) -> Found:
    """The pictures that the words of the command name. DataError for a missing path or a folder without pictures."""
    from resnet_jax.data.listing import pictures_below, shown

    paths, others = [], 0
    for word in given:
        if not os.path.exists(word):
            raise DataError(f"{shown(word)}: there is no such file or folder")
        if not os.path.isdir(word):
            paths.append(word)
            continue
        try:
            inside, rest = pictures_below(Path(word))
        except OSError as error:
            raise DataError(f"the folder {shown(word)} cannot be read: {one_line(error)}") from None
        if not inside:
            raise DataError(f"the folder {shown(word)} holds no pictures; give PNG, JPEG, WebP, BMP, GIF or TIFF files")
        paths, others = paths + inside, others + rest
    return Found(paths, others)


def predicted(asked: Predict, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row for each picture, in order. Only a batch of pictures is in memory at a time."""
    from resnet_jax.data import pictures  # imports jax and Pillow
    from resnet_jax.runs import load
    from resnet_jax.runs.hardware import compile_cache
    from resnet_jax.runs.predictor import BATCHES

    with compile_cache(), pictures.quiet():
        predictor = load(asked.run_dir)
        top, channels = min(asked.top, len(predictor.class_names)), predictor.image_shape[-1]
        if channels not in (1, 3):
            raise ConfigError(f"{asked.run_dir}: its images have {channels} channels; a picture has 1 or 3")
        for photos in batches(paths, predictor, INVERT[asked.invert], BATCHES[-1]):
            yield from rows_of(predictor, photos, top)


def batches(
    paths: Sequence[str], predictor: "Predictor", invert: bool | None, size: int
) -> Iterator[list[tuple[str, "Photo | UserError"]]]:
    """The pictures as the network takes them, or their errors. Threads decode; the size of a photo is not kept."""
    from concurrent.futures import ThreadPoolExecutor

    from resnet_jax.cores import cpu_count
    from resnet_jax.runs.photos import as_trained, open_picture

    def read(path: str) -> "Photo | UserError":
        try:
            return as_trained(open_picture(path, predictor.image_shape[-1]), predictor, invert)
        except UserError as error:
            return error

    with ThreadPoolExecutor(min(16, cpu_count())) as pool:
        for start in range(0, len(paths), size):
            part = paths[start : start + size]
            yield list(zip(part, pool.map(read, part), strict=True))


def rows_of(
    predictor: "Predictor", photos: list[tuple[str, "Photo | UserError"]], top: int
) -> Iterator[dict[str, Any]]:
    """What is printed of each picture."""
    import numpy as np

    from resnet_jax.data.listing import shown

    pixels = [photo.pixels for _, photo in photos if not isinstance(photo, UserError)]
    probabilities = iter(predictor(np.stack(pixels)) if pixels else ())
    for path, photo in photos:
        if isinstance(photo, UserError):
            yield {"path": shown(path), "error": str(photo)}
            continue
        row = next(probabilities)
        best = np.argsort(-row, kind="stable")[:top]
        classes = {"classes": [predictor.class_names[k] for k in best], "probabilities": row[best].tolist()}
        yield {"path": shown(path)} | classes | {"inverted": photo.inverted, "changes": list(photo.changes)}


def line_of(row: dict[str, Any]) -> str:
    """A row for people: the path, the classes with their percentages, and what was done to the picture."""
    classes = (f"{name} {share:.1%}" for name, share in zip(row["classes"], row["probabilities"], strict=True))
    changes = f" ({'; '.join(row['changes'])})" if row["changes"] else ""
    return f"{row['path']}: {', '.join(classes)}{changes}"
