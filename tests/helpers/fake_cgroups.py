"""Trees of /proc and /sys as containers have them."""

from pathlib import Path

# the lines of mountinfo of cgroup v2, and of the memory controller of cgroup v1; each mount shows the cgroup {root}
V2 = "31 23 0:28 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate"
V1_MEMORY = "40 31 0:37 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
DISK = "22 1 0:5 / / rw - ext4 /dev/vda rw"


def tree(folder: Path, mounts: str, cgroup: str, files: dict[str, str]) -> Path:
    """Write the files of a machine. mounts, cgroup: the content of /proc/self/mountinfo and /proc/self/cgroup."""
    for path, text in {"proc/self/mountinfo": f"{DISK}\n{mounts}\n", "proc/self/cgroup": cgroup, **files}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder
