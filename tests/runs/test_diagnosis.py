"""What a machine has, on folders that look like other machines."""

import pytest

from resnet_jax.runs import diagnosis, machine


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def card(number, vendor, device, kind):
    folder = f"sys/bus/pci/devices/{number}"
    return {f"{folder}/vendor": vendor, f"{folder}/device": device, f"{folder}/class": kind}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (card("0", "0x1ae0", "0x0063", "0x120000"), ["TPU v5e"]),
        (card("0", "0x1ae0", "0x0042", "0x020000"), []),  # a network card
        (card("0", "0x10de", "0x2330", "0x030200") | card("1", "0x10de", "0x10f0", "0x040300"), ["an NVIDIA GPU"]),
        ({"dev/nvidiactl": ""}, ["an NVIDIA GPU"]),
        ({}, []),
    ],
)
def test_accelerators(files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "nvidia_smi", list)
    write(tmp_path, files)
    assert machine.accelerators(tmp_path) == expected


def test_nvidia_smi(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    for text, expected in (("echo NVIDIA H100\necho NVIDIA H200", ["NVIDIA H100", "NVIDIA H200"]), ("exit 9", [])):
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        assert machine.nvidia_smi() == expected


@pytest.mark.parametrize(
    ("seen", "platforms", "do"),
    [
        (["NVIDIA H100"], None, 'install it: pip install "resnet_jax[cuda]"'),
        (["TPU v5e", "TPU v5e"], None, 'install it: pip install "resnet_jax[tpu]"'),
        (["NVIDIA H100"], "cpu", "unset JAX_PLATFORMS"),
    ],
)
def test_an_accelerator_without_its_plugin(seen, platforms, do, monkeypatch):
    monkeypatch.setattr(diagnosis, "accelerators", lambda: seen)
    monkeypatch.setattr(diagnosis.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("JAX_PLATFORMS")
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    problems = []
    diagnosis.devices(problems.append)
    (problem,) = problems
    assert seen[0] in problem.what
    assert (problem.do, problem.fatal) == (do, False)


def test_a_part_that_fails_does_not_hide_the_others(monkeypatch):
    def fails(report):
        raise OSError("no such disk")

    monkeypatch.setattr(diagnosis, "machine", fails)
    findings, problems = diagnosis.diagnose()
    assert findings["machine"] == {"error": "OSError: no such disk"}
    assert "machine: OSError: no such disk" in {problem.what for problem in problems}
    assert findings["devices"]["backend"] == "cpu"


def test_little_disk_and_memory_are_reported(monkeypatch):
    monkeypatch.setattr(diagnosis, "LITTLE_DISK", 1e18)
    monkeypatch.setattr(diagnosis, "LITTLE_MEMORY", 1e18)
    _, problems = diagnosis.diagnose()
    words = [problem.what for problem in problems if not problem.fatal]
    assert sum("are free in" in what for what in words) == 2
    assert sum("of memory are free" in what for what in words) == 1
