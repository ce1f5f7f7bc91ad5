"""The accelerators of this machine, as Linux shows them, without JAX."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path("/")
NVIDIA, GOOGLE = "0x10de", "0x1ae0"  # PCI vendors
# PCI devices of Google that are TPUs; others are network cards and disks. Source: jax._src.hardware_utils
TPUS = {"0x0027": "v3", "0x005e": "v4", "0x0062": "v5p", "0x0063": "v5e", "0x006f": "v6e", "0x0076": "7x"}
DISPLAYS = ("0x0300", "0x0302")  # the PCI classes of a GPU


def accelerators(root: Path = ROOT) -> list[str]:
    """The GPUs and TPUs of this machine, whether JAX can use them or not: TPU v5e, or the names that nvidia-smi has."""
    found, gpus = [], 0
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        vendor, number, kind = (_text(device / name).strip() for name in ("vendor", "device", "class"))
        if vendor == GOOGLE and number in TPUS:
            found.append(f"TPU {TPUS[number]}")
        gpus += vendor == NVIDIA and kind[:6] in DISPLAYS
    names = nvidia_smi()
    seen = gpus or any((root / "dev" / name).exists() for name in ("nvidia0", "nvidiactl", "dxg"))
    return found + (names or ["an NVIDIA GPU"] * (gpus or 1 if seen else 0))


def nvidia_smi() -> list[str]:
    """The names of the GPUs that nvidia-smi lists; none if it is missing or fails, as without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, env=os.environ)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in run.stdout.splitlines() if line.strip()]


def _text(path: Path) -> str:
    """The content of a file of the system; "" if it cannot be read, as on other systems than Linux."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
