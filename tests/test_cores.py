"""The core count, on trees of /proc and /sys as containers have them."""

import math
import os
from pathlib import Path

import pytest
from fake_cgroups import V1_MEMORY, V2, tree
from hypothesis import given
from hypothesis import strategies as st

from resnet_jax import cores

V1 = "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct"
MOUNT2, MOUNT1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct"


def v1(path: str, quota: int, period: int = 100000) -> dict[str, str]:
    return {f"{MOUNT1}/{path}cpu.cfs_quota_us": f"{quota}\n", f"{MOUNT1}/{path}cpu.cfs_period_us": f"{period}\n"}


CASES = {
    "no cgroups": ("", "", {}, None),
    "v2, docker --cpus=2": (V2, "0::/\n", {f"{MOUNT2}/cpu.max": "200000 100000\n"}, 2),
    "v2, no quota": (V2, "0::/\n", {f"{MOUNT2}/cpu.max": "max 100000\n"}, None),
    "v2, half a core": (V2, "0::/\n", {f"{MOUNT2}/cpu.max": "50000 100000\n"}, 0.5),
    "v2, the root has no file": (V2, "0::/\n", {}, None),
    "v2, nested": (V2, "0::/a/b\n", {f"{MOUNT2}/a/b/cpu.max": "300000 100000"}, 3),
    "v2, a smaller quota above": (
        V2,
        "0::/a/b\n",
        {f"{MOUNT2}/a/b/cpu.max": "300000 100000", f"{MOUNT2}/a/cpu.max": "150000 100000"},
        1.5,
    ),
    "v2, a quota above only": (
        V2,
        "0::/a/b\n",
        {f"{MOUNT2}/a/b/cpu.max": "max 100000", f"{MOUNT2}/a/cpu.max": "400000 100000"},
        4,
    ),
    "v2, another path below the root of a namespace": (
        V2,
        "0::/../other\n",
        {f"{MOUNT2}/cpu.max": "200000 100000"},
        2,
    ),
    "v1, docker's mount of its own cgroup": (
        V1.replace("{root}", "/docker/abc"),
        "4:cpu,cpuacct:/docker/abc\n",
        v1("", 250000),
        2.5,
    ),
    "v1, nested below that": (
        V1.replace("{root}", "/docker/abc"),
        "4:cpu,cpuacct:/docker/abc/job\n",
        v1("job/", 100000) | v1("", 200000),
        1,
    ),
    "v1, the path of the host": (V1, "4:cpu,cpuacct:/docker/abc\n", v1("", 200000), 2),
    "v1, no quota": (V1, "4:cpu,cpuacct:/\n", v1("", -1), None),
    "v1, quota of another controller": (V1, "4:cpuset:/\n", v1("", 100000), None),
    "v1, another period": (V1, "3:cpu,cpuacct:/\n", v1("", 75000, 25000), 3),
    "both": (f"{V1}\n{V2.replace('/sys/fs/cgroup', '/sys/fs/cgroup/unified')}", "3:cpu:/\n0::/\n", v1("", 300000), 3),
    "a path with a space": (
        V2.replace("/sys/fs/cgroup", r"/sys/fs/c\040group"),
        "0::/\n",
        {"sys/fs/c group/cpu.max": "200000 100000"},
        2,
    ),
    "damaged files": (V2, "0::/\nnonsense::\n", {f"{MOUNT2}/cpu.max": "abc\n"}, None),
    "a period of 0": (V2, "0::/\n", {f"{MOUNT2}/cpu.max": "100000 0\n"}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_quota_of_a_container(tmp_path, monkeypatch, case):
    """Issue 11, case 24."""
    mounts, cgroup, files, quota = CASES[case]
    root = tree(tmp_path, f"{V1_MEMORY}\n{mounts}".replace("{root}", "/"), cgroup, files)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert cores.cpu_quota(root) == quota
    assert cores.cpu_count(root) == (64 if quota is None else math.ceil(quota))


def test_the_affinity_mask_counts_too(tmp_path, monkeypatch):
    root = tree(tmp_path, V2.replace("{root}", "/"), "0::/\n", {f"{MOUNT2}/cpu.max": "800000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert cores.cpu_count(root) == 2


@given(quota=st.integers(1, 10**9), period=st.integers(1, 10**6), depth=st.integers(0, 4), mask=st.integers(1, 256))
def test_any_quota_is_rounded_up_and_within_the_mask(tmp_path_factory, quota, period, depth, mask):
    path = "/".join("abcd"[:depth])
    files = {f"{MOUNT2}/{path}/cpu.max": f"{quota} {period}\n"}
    root = tree(tmp_path_factory.mktemp("tree"), V2.replace("{root}", "/"), f"0::/{path}\n", files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda pid: set(range(mask)), raising=False)
        count = cores.cpu_count(root)
    assert 1 <= count <= mask
    assert count == mask or (count - 1) * period < quota <= count * period


@pytest.mark.parametrize("user", [None, "PJRT_NPROC", "NPROC"])
def test_a_command_limits_the_threads_of_xla(monkeypatch, user):
    monkeypatch.setattr(cores, "cpu_quota", lambda root=Path("/"): 1.5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    for name in cores.XLA_THREADS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if user:
        monkeypatch.setenv(user, "7")
    cores.limit_xla()
    assert {name: os.environ.get(name) for name in cores.XLA_THREADS if name in os.environ} == (
        {user: "7"} if user else {"PJRT_NPROC": "2"}
    )


def test_without_a_quota_the_environment_stays(monkeypatch):
    monkeypatch.setattr(cores, "cpu_quota", lambda root=Path("/"): None)
    before = dict(os.environ)
    cores.limit_xla()
    assert dict(os.environ) == before
