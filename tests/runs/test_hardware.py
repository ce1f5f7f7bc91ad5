"""The cache of compiled programs, and what a command reports of its machine."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import made
import pytest
from jax.experimental.compilation_cache import compilation_cache

from resnet_jax import cli, cores, fit
from resnet_jax.errors import CallbackError, ConfigError
from resnet_jax.runs import grow_run, hardware, rundir

ROOT = Path(__file__).parents[2]
SETTINGS = (hardware.CACHE_DIR, hardware.CACHE_SECONDS, "jax_compilation_cache_max_size")


@pytest.fixture
def unset():
    """jax as it starts: without a compile cache. Afterwards the tests' own one is back."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    jax.config.update(hardware.CACHE_DIR, None)
    jax.config.update(hardware.CACHE_SECONDS, 1.0)
    jax.config.update("jax_compilation_cache_max_size", -1)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compile_one(number: int) -> None:
    jax.jit(lambda x: x * number + 1)(float(number)).block_until_ready()


def programs(folder: Path) -> int:
    return len(list(folder.glob("*-cache")))


def test_the_cache_lasts_for_the_block(unset, tmp_path, monkeypatch):
    """Issue 11, case 23: also after jax has compiled something, and for the second time with another folder."""
    compile_one(2)
    for number, name in ((3, "one"), (4, "two")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        with hardware.compile_cache():
            compile_one(number)
        assert jax.config.values[hardware.CACHE_DIR] is None
        assert jax.config.values[hardware.CACHE_SECONDS] == 1.0
        kept = programs(tmp_path / name / "resnet_jax")
        assert kept > 0
        compile_one(number + 10)
        assert programs(tmp_path / name / "resnet_jax") == kept


class CompilesAndFails:
    def on_fit_start(self, loop):
        compile_one(9)
        raise RuntimeError("enough")


def test_fit_leaves_no_cache_behind(unset, data_dir, tmp_path, monkeypatch):
    """A callback ends it before the first step, as compiling a step takes long."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(CallbackError, match="enough"):
        fit(made.make_config(data_dir, tmp_path / "run", devices=1), callbacks=[CompilesAndFails()])
    assert programs(tmp_path / "cache" / "resnet_jax") > 0
    assert jax.config.values[hardware.CACHE_DIR] is None
    assert jax.config.values[hardware.CACHE_SECONDS] == 1.0


def test_an_error_inside_restores_the_settings_too(unset, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(KeyError), hardware.compile_cache():
        raise KeyError
    assert jax.config.values[hardware.CACHE_DIR] is None


def test_a_cache_of_the_user_is_left_alone(unset, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ours"))
    jax.config.update(hardware.CACHE_DIR, str(tmp_path / "theirs"))
    jax.config.update(hardware.CACHE_SECONDS, 0.0)
    compile_one(5)
    before = programs(tmp_path / "theirs")
    with hardware.compile_cache():
        compile_one(6)
    assert programs(tmp_path / "theirs") > before > 0
    assert not (tmp_path / "ours").exists()
    jax.config.update(hardware.CACHE_DIR, None)
    with hardware.compile_cache():  # a callback that configures a cache during the fit
        jax.config.update(hardware.CACHE_DIR, str(tmp_path / "theirs"))
    assert jax.config.values[hardware.CACHE_DIR] == str(tmp_path / "theirs")


def test_an_unwanted_cache_is_not_made(unset, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with hardware.compile_cache(False):
        compile_one(7)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("base", ["/proc/nowhere", "FILE/cache", "~nobody_of_that_name/cache"])
def test_a_cache_folder_that_cannot_be_made_is_reported(unset, tmp_path, monkeypatch, capsys, base):
    """Issue 11, case 18: no home folder."""
    (tmp_path / "FILE").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    with hardware.compile_cache():
        compile_one(8)
        assert jax.config.values[hardware.CACHE_DIR] is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("compiled programs are not kept: ")
    assert line.endswith("; XDG_CACHE_HOME names another folder for caches")
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


def test_the_cores_of_the_line_are_those_of_the_quota(monkeypatch):
    monkeypatch.setattr(hardware, "cpu_count", lambda: 3)
    assert ", 3 cores, " in hardware.describe(jax.local_devices()[:1], "float32")


def test_several_processes_are_refused_by_each_way_to_train(data_dir, tmp_path, monkeypatch):
    """Issue 11, case 21. Nothing is written."""
    config = made.make_config(data_dir, tmp_path / "run")
    (tmp_path / "run").mkdir()
    rundir.write_config(tmp_path / "run", config)
    before = made.snapshot(tmp_path)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for call in (
        lambda: fit(made.change(config, run_dir=str(tmp_path / "new"))),
        lambda: fit(made.change(config, resume=True)),
        lambda: grow_run(tmp_path / "run", tmp_path / "grown", stage=2),
    ):
        with pytest.raises(ConfigError, match=r"jax.process_count\(\) is 2: .* not supported"):
            call()
    assert made.snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError("Unable to allocate 9 TiB"), "this machine has too little memory (Unable to allocate 9 TiB)"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "the device has too little memory"),
    ],
)
def test_a_command_reports_a_lack_of_memory_in_one_line(monkeypatch, capsys, error, message):
    def fails(*_):
        raise error

    monkeypatch.setattr("resnet_jax.cli.summary.summary", fails)
    assert cli.command(["summary"], "resnet-jax") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_command_limits_xla_before_it_starts(monkeypatch):
    called = []
    monkeypatch.setattr(cores, "limit_xla", lambda: called.append(True))
    monkeypatch.setattr("resnet_jax.cli.summary.summary", lambda *_: None)
    assert cli.command(["summary"]) == 0
    assert called == [True]


def test_devices_that_are_not_there(tmp_path):
    """The command in processes of its own, because JAX starts its devices once."""
    words = ["train.py", "--arch", "resnet20", "--dataset", "fashion_mnist", "--run-dir", "run"]
    command = [sys.executable, str(ROOT / words[0]), *words[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path), "GLIBC_TUNABLES": ""}
    processes = {
        name: subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment | {"JAX_PLATFORMS": name},
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("cuda", "typo")
    }
    for name, process in processes.items():
        lines = process.communicate()[1].splitlines()
        assert process.returncode == 2
        assert lines[-1].startswith(f"train.py: JAX_PLATFORMS={name}: JAX cannot start this machine's devices")
        assert not any("Traceback" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


TWO = """
import sys, jax, numpy as np
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
import resnet_jax, resnet_jax.errors
images = np.arange(8 * 16, dtype=np.uint8).reshape(8, 4, 4, 1)
data = resnet_jax.data.from_arrays(images, np.arange(8) % 2)
model = resnet_jax.ResNet(arch=((1, 8),), num_classes=2, stem="small")
try:
    resnet_jax.Trainer(max_epochs=1, batch_size=4, run_dir=sys.argv[3]).fit(model, data)
except resnet_jax.errors.ConfigError as error:
    print(error)
"""


@pytest.mark.long
def test_two_real_processes(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(port), str(number), str(tmp_path / "run")],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert ["jax.process_count() is 2: training" in output for output in outputs] == [True, True]
    assert not (tmp_path / "run").exists()
