"""doctor: it runs on this machine and on broken ones, and its exit code says whether training works."""

import json
import os
import subprocess
import sys

import pytest

from resnet_jax import cli

BROKEN = """
import sys
class Broken:
    def find_spec(self, name, path, target=None):
        if name == "jax":
            raise ImportError("jaxlib is of another version")
sys.meta_path.insert(0, Broken())
from resnet_jax import cli
sys.exit(cli.command(["doctor", "--json"], "resnet-jax"))
"""


def test_this_machine(capsys):
    assert cli.command(["doctor"], "resnet-jax") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.endswith("this machine can train\n")
    for line in ("  backend: cpu", "  data:", "  report: installed", "  XLA_FLAGS: --xla_force_host"):
        assert f"\n{line}" in out
    assert "note: XLA_FLAGS=--xla_force_host_platform_device_count=8 makes several devices of one CPU" in out


def test_the_json_is_the_page(capsys):
    assert cli.command(["doctor", "--json"], "resnet-jax") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["can_train"] is True
    assert len(found["devices"]["devices"]) == 8
    assert found["data sets"]["fashion_mnist"]
    assert {tuple(problem) for problem in found["problems"]} == {("what", "do", "fatal")}


def test_a_folder_for_runs_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert cli.command(["doctor", "--run-dir", "file/runs"], "resnet-jax") == 2
    out = capsys.readouterr().out
    assert "fault: file/runs cannot be written to; give --run-dir another folder\n" in out


@pytest.mark.parametrize("code", [BROKEN, None], ids=["jax does not import", "no such device"])
def test_a_broken_backend_is_a_fault(code, tmp_path):
    command = ["-c", code] if code else ["-m", "resnet_jax", "doctor", "--json"]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    env |= {"JAX_PLATFORMS": "cpu" if code else "cuda", "HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (2, "")
    found = json.loads(run.stdout)
    assert found["can_train"] is False
    assert found["devices"]["backend"] is None
    fault = found["problems"][0]
    assert fault["fatal"]
    assert ("jaxlib is of another version" if code else "JAX_PLATFORMS=cuda") in fault["what"]
    assert found["machine"]["cores"]
    assert found["disk"]["runs"]
    assert not list(tmp_path.iterdir())
