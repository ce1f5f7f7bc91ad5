"""Every Python block of the README and of docs/ runs, page by page, in a folder of its own."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
NEEDS = re.compile(r"# needs (\w+)\n")  # the first line of a block that runs only where that package is installed
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


def can_run(block: str) -> bool:
    needs = NEEDS.match(block)
    return needs is None or importlib.util.find_spec(needs[1]) is not None


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, tmp_path):
    code = "\n".join(block for block in BLOCK.findall(page.read_text(encoding="utf-8")) if can_run(block))
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device, as readers have
    env["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "docs" / page.stem)
    env["WANDB_MODE"] = "offline"
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
