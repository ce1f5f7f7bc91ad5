"""export: the network of a run or of converted weights as a program that needs no code of ours."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from resnet_jax.cli.options import RunDir, notes_apart, print_json
from resnet_jax.errors import InteropError, listed
from resnet_jax.paths import check_file_writable
from resnet_jax.runs.argv import parse_as
from resnet_jax.runs.values import PathText

EXAMPLES = (
    "runs/NAME  # writes runs/NAME/predict.jax_export",
    "weights/resnet50 --out resnet50.jax_export  # a folder that convert made",
)


@dataclasses.dataclass(frozen=True)
class Export:
    """Write the network of a run's best checkpoint, or of converted weights, as a StableHLO program.

    It takes uint8 images and returns probabilities.
    """

    run_dir: RunDir
    """The run's folder, or a folder that convert made."""
    out: PathText = ""
    """The file to write. Default: RUN_DIR/predict.jax_export."""
    json: bool = False
    """Print one JSON object: the file, its size, and what the program takes and returns."""


def export(argv: Sequence[str], prog: str) -> None:
    """Write the program, and print how to run it."""
    asked = parse_as(Export, argv, prog, EXAMPLES)
    from resnet_jax.interop.export import PLATFORMS, export_program  # imports jax
    from resnet_jax.runs import load

    path = asked.out or str(Path(asked.run_dir) / "predict.jax_export")
    if asked.out:
        check_file_writable(Path(path), "--out", InteropError)
    with notes_apart(asked.json):
        predictor = load(asked.run_dir)
        size = export_program(predictor.probabilities, predictor.image_shape, path)
    if asked.json:
        made = {"out": path, "bytes": size, "platforms": PLATFORMS, "step": predictor.step}
        print_json(made | {"image_shape": predictor.image_shape, "class_names": predictor.class_names})
        return
    shape = ", ".join(map(str, predictor.image_shape))
    print(f"{path}: {size:,} bytes for {', '.join(PLATFORMS)}; uint8 (N, {shape}) to probabilities of")
    print(f"{listed(predictor.class_names)}. To run it: jax.export.deserialize(bytearray(content)).call(images)")
