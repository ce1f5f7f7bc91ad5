"""Ctrl-C while a command imports its libraries."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_jax.interrupts import command_name, interruptible_import

ROOT = Path(__file__).parents[1]
JAX = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
os.kill(os.getpid(), signal.SIGINT)
try:
    for _ in range(10000): pass
except KeyboardInterrupt:
    raise ImportError("Encountered an error while initializing the extension.")
"""
SCRIPT = "import sys\nfrom resnet_jax.cli import command\nsys.exit(command())"


@pytest.mark.parametrize("name", ["train.py", "python -m resnet_jax", "resnet-jax"])
def test_an_interruption_is_one_line(name, tmp_path):
    """A module jax that is interrupted, and that does with it what its extension module does."""
    (tmp_path / "jax.py").write_text(JAX)
    (tmp_path / "resnet-jax").write_text(SCRIPT)
    command = {"train.py": [ROOT / "train.py"], "resnet-jax": [tmp_path / "resnet-jax"]}.get(name, ["-m", "resnet_jax"])
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    run = subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", f"{name}: interrupted\n")


@pytest.mark.parametrize(
    ("argv", "started", "name"),
    [
        ("train.py", ["python", "train.py", "--epochs", "1"], "train.py"),
        ("/usr/bin/resnet-jax", ["python", "/usr/bin/resnet-jax"], "resnet-jax"),
        (str(ROOT / "resnet_jax" / "__main__.py"), ["python", "-m", "resnet_jax"], "python -m resnet_jax"),
        ("train.py", ["python", "-m", "ipykernel_launcher"], ""),
        ("/usr/bin/pytest", ["python", "/usr/bin/pytest"], ""),
        ("", ["python"], ""),
    ],
)
def test_what_is_a_command(argv, started, name, monkeypatch):
    monkeypatch.setattr(sys, "argv", [argv])
    monkeypatch.setattr(sys, "orig_argv", started)
    assert command_name() == name


@pytest.fixture
def default_handler():
    """Python's own, which a process in the background of a shell does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_handler")
def test_the_handler_is_there_for_a_command_alone(monkeypatch):
    for started, handles in ((["python", "-m", "ipykernel_launcher"], False), (["python", "train.py"], True)):
        monkeypatch.setattr(sys, "argv", ["train.py"])
        monkeypatch.setattr(sys, "orig_argv", started)
        with interruptible_import():
            assert (signal.getsignal(signal.SIGINT) is not signal.default_int_handler) == handles
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
