"""The notebooks run from top to bottom with small settings, on 8 fake devices, and git holds them without outputs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {"epochs": 1, "batch_size": 16, "image_size": 28, "width": 0.125}


def cells_of(notebook: Any, kind: str) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == kind]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 grey pictures of 28x28 in 3 classes: of each class, 16 for training, 2 for validation and 2 for the test."""
    folder = tmp_path_factory.mktemp("notebooks") / "pictures"
    rng = np.random.default_rng(0)
    for number in range(60):
        path = folder / ("bag", "coat", "shirt")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 86, (28, 28)) + 80 * (number % 3)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.fixture(autouse=True)
def _kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel python3 is this Python, and no configuration of the user's Jupyter is read."""
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def execute(name: str, folder: Path, **parameters: Any) -> Any:
    """The notebook after papermill has run it in this folder with these parameters."""
    out = folder / "out.ipynb"
    flags = [word for key, value in parameters.items() for word in ("-p", key, str(value))]
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "notebooks" / name),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "OMP_NUM_THREADS": "1",  # the 8 devices share the cores already
    }
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / f"{name}.ipynb"), str(out), *flags]
    command += ["--cwd", str(folder), "--no-progress-bar", "--kernel", "python3"]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return nbformat.read(out, as_version=4)


def printed(notebook: Any, ident: str) -> str:
    """What a cell has printed. A cell that is run by papermill keeps its id."""
    (cell,) = [cell for cell in notebook.cells if cell.id == ident]
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def plots(notebook: Any) -> list[str]:
    """The ids of the cells that have drawn something."""
    return [
        cell.id
        for cell in cells_of(notebook, "code")
        if any("image/png" in output.get("data", {}) for output in cell.outputs)
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stripped_and_valid(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)  # the first version with ids of cells
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    code = cells_of(notebook, "code")
    full = [cell.id for cell in code if cell.outputs or cell.execution_count is not None]
    assert full == [], "clear the outputs of these cells and save the notebook"
    assert [cell.id for cell in code if "parameters" in cell.metadata.get("tags", ())] == ["parameters"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_every_parameter_of_the_test(path: Path) -> None:
    """papermill only warns about an unknown parameter."""
    (cell,) = [cell for cell in nbformat.read(path, as_version=4).cells if cell.id == "parameters"]
    assert {*SMALL, "data_folder"} <= set(re.findall(r"^(\w+) = ", cell.source, re.MULTILINE))


def test_the_chapter(tmp_path: Path, pictures: Path) -> None:
    notebook = execute("chapter", tmp_path, data_folder=pictures, **SMALL)
    # The chapter's shapes, with channels last. Without the native kernels a line about them is printed first.
    assert printed(notebook, "same-shape").endswith("(4, 6, 6, 3)\n")
    assert printed(notebook, "half-size") == "(4, 3, 3, 6)\n"
    assert printed(notebook, "resnext-block") == "(4, 96, 96, 32)\n(4, 48, 48, 32)\n"
    assert printed(notebook, "zero-init") == "largest difference: 0.0\n"
    assert printed(notebook, "resnet") == "True\n"
    shapes = re.findall(r"\(1, [\d, ]+\)", printed(notebook, "layer-summary"))
    stages = ["(1, 64, 24, 24)", "(1, 128, 12, 12)", "(1, 256, 6, 6)", "(1, 512, 3, 3)"]  # the chapter's, (N, C, H, W)
    last = [f"({n}, {h}, {w}, {c})" for n, c, h, w in (re.findall(r"\d+", shape) for shape in stages)]
    assert [shape for shape in last if shape in shapes] == last
    assert shapes[-1] == "(1, 10)"
    difference, before, after = printed(notebook, "insert").splitlines()[1:]
    assert float(difference.split(": ")[1]) < 1e-5
    assert before.removeprefix("before: ") == after.removeprefix("after: ")
    scales = [float(line.split(": ")[1]) for line in printed(notebook, "grow-train-code").splitlines()[-2:]]
    assert scales[0] == 0.0 < scales[1]
    assert plots(notebook) == ["draw-classes", "show-data", "curves", "predict"]


@pytest.mark.thorough
def test_colab_trains_on_all_devices_and_resumes(tmp_path: Path, pictures: Path) -> None:
    first = execute("colab_tpu", tmp_path, data_folder=pictures, **SMALL)
    kept = printed(first, "install-code")
    assert re.search(r"^jax==\d", kept, re.MULTILINE)
    assert re.search(r"^flax==\d", kept, re.MULTILINE)
    assert printed(first, "devices-code").startswith("8 x cpu (cpu)")
    assert plots(first) == ["curves-code", "predict-code"]
    assert "config.json" in printed(first, "files")

    second = execute("colab_tpu", tmp_path, data_folder=pictures, **SMALL | {"epochs": 2})
    assert "resumed from step 3, after 1 of 2 epochs" in printed(second, "train-code")
    rows = (tmp_path / "runs" / "resnet18-fashion_mnist" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == [1, 2]
