"""Every Python block of the README and of docs/ runs, page by page, in a folder of its own.

The blocks ```bash run after them, in the same folder, where train.py is that of this repository. Blocks without a
language show commands that need the real data or the reader's own files, and do not run.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from thorough import thorough_except

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages that take more than 10 s, a tenth of the time of all tests. What they show has tests of its own.
SLOW = {
    "augmentation",
    "demo",
    "from_pytorch",
    "growth",
    "layers",
    "own_pictures",
    "recipes",
    "report",
    "run_folder",
    "search",
    "training_options",
    "use",
}
NEEDS = re.compile(r"# needs (\w+)\n")  # the first line of a block that runs only where that package is installed


def blocks(page: Path, language: str) -> str:
    """The code of the blocks of a page in a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return "\n".join(block for block in found if can_run(block))


def can_run(block: str) -> bool:
    needs = NEEDS.match(block)
    return needs is None or importlib.util.find_spec(needs[1]) is not None


RUN = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize(
    "page", thorough_except(RUN, *(page for page in RUN if page.stem not in SLOW)), ids=lambda page: page.stem
)
def test_the_code_of_a_page_runs(page, tmp_path):
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device, as readers have
    env["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "docs" / page.stem)
    env["WANDB_MODE"] = "offline"
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    env["XDG_CACHE_HOME"] = str(tmp_path / "cache")  # for decoded pictures
    env["MPLBACKEND"] = "agg"
    run = subprocess.run(
        [sys.executable, "-c", blocks(page, "python")], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    if commands := blocks(page, "bash"):
        (tmp_path / "train.py").symlink_to(ROOT / "train.py")
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        run = subprocess.run(["sh", "-ec", commands], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-3000:]
