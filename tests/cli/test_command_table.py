"""The table of commands: what --help and --version print, how fast that can be, and what runs."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from resnet_jax import cli
from resnet_jax.cli.main import COMMANDS

LATE = """
import sys
from resnet_jax import cli
try:
    code = cli.command(sys.argv[1:], "resnet-jax")
except SystemExit as stop:
    code = stop.code
heavy = {"jax", "flax", "optax", "orbax", "tensorflow_datasets"} & {name.partition(".")[0] for name in sys.modules}
assert (code, heavy) == (CODE, set()), (code, heavy)
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        *(([name, "--help"], 0) for name in COMMANDS),
        (["--epochs", "abc"], 2),
        (["predict"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_help_and_wrong_words_import_no_jax(words, code, tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", LATE.replace("CODE", str(code)), *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert bool(run.stdout) == (code == 0)


def test_help_lists_every_command(capsys):
    assert cli.command(["--help"], "resnet-jax") == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    for name, what in COMMANDS.items():
        assert [name, what] in lines


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_examples_that_it_can_read(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.command([name, "--help"], "resnet-jax")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: resnet-jax {name}")
    examples = out.partition("\nexamples:\n")[2].splitlines()
    assert examples
    for example in examples:
        assert example.startswith(f"  resnet-jax {name}")


def test_version(capsys):
    assert cli.command(["--version"], "resnet-jax") == 0
    held = {name: importlib.metadata.version(name) for name in ("resnet_jax", "jax")}
    assert capsys.readouterr().out == f"resnet_jax {held['resnet_jax']}, jax {held['jax']}\n"
