"""The memory of the machine or its container, on trees of /proc and /sys as containers have them."""

import pytest
from fake_cgroups import V1_MEMORY, V2, tree

from resnet_jax.host_memory import Memory, memory

MEMINFO = "MemTotal:  8000 kB\nMemFree: 1 kB\nMemAvailable:  6000 kB\n"
MACHINE = Memory(6000 * 1024, 8000 * 1024)
MOUNT2, MOUNT1 = "sys/fs/cgroup/{path}memory.max", "sys/fs/cgroup/memory/{path}memory.limit_in_bytes"


def v2(limit: str, path: str = "") -> dict[str, str]:
    return {MOUNT2.format(path=path): f"{limit}\n"}


def v1(limit: str, path: str = "") -> dict[str, str]:
    return {MOUNT1.format(path=path): f"{limit}\n"}


UNLIMITED = "9223372036854771712"  # cgroup v1 without a limit
CASES = {
    "no cgroups": ("", "", {}, MACHINE),
    "v2, docker --memory": (V2, "0::/\n", v2("4096000"), Memory(4096000, 4096000)),
    "v2, more than is available": (V2, "0::/\n", v2("7168000"), Memory(6000 * 1024, 7168000)),
    "v2, no limit": (V2, "0::/\n", v2("max"), MACHINE),
    "v2, more than the machine has": (V2, "0::/\n", v2("8192001"), MACHINE),
    "v2, the root has no file": (V2, "0::/\n", {}, MACHINE),
    "v2, nested": (V2, "0::/a/b\n", v2("4096000", "a/b/"), Memory(4096000, 4096000)),
    "v2, a smaller limit above": (
        V2,
        "0::/a/b\n",
        v2("4096000", "a/b/") | v2("2048000", "a/"),
        Memory(2048000, 2048000),
    ),
    "v2, the limit of another cgroup": (V2, "0::/a\n", v2("4096000", "b/"), MACHINE),
    "v1, docker --memory": (
        V1_MEMORY.replace("{root}", "/docker/abc"),
        "9:memory:/docker/abc\n",
        v1("4096000"),
        Memory(4096000, 4096000),
    ),
    "v1, nested": (V1_MEMORY, "9:memory:/a\n", v1(UNLIMITED) | v1("4096000", "a/"), Memory(4096000, 4096000)),
    "v1, no limit": (V1_MEMORY, "9:memory:/\n", v1(UNLIMITED), MACHINE),
    "v1, a cgroup of another controller": (V1_MEMORY, "9:cpu:/\n", v1("4096000"), MACHINE),
    "damaged files": (V2, "nonsense\n0::/\n", v2("abc"), MACHINE),
}


@pytest.mark.parametrize("case", CASES)
def test_the_memory_of_a_container(tmp_path, case):
    mounts, cgroup, files, expected = CASES[case]
    root = tree(tmp_path, mounts.replace("{root}", "/"), cgroup, {"proc/meminfo": MEMINFO, **files})
    assert memory(root) == expected


def test_a_system_without_proc(tmp_path):
    assert memory(tmp_path) == Memory(None, None)
