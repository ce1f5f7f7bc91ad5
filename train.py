"""Train a ResNet or a ResNeXt: python train.py --arch resnet18. --help lists every flag."""

import os  # both are loaded already when Python starts: a Ctrl-C has no import to interrupt here
import sys

PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"  # Linux's setting for 2 MiB pages
STARTED_OVER = "resnet_jax_pages"


def use_large_pages() -> None:
    """Restart this process with 2 MiB pages for large arrays. glibc (from 2.35) reads that setting only at its start.

    XLA:CPU maps new memory in each step. With its own kernels and pages of 4 KiB, a sixth of resnet18's step at 96x96
    went into that. Nothing happens if Linux gives such pages to all processes or to none, if the environment has
    GLIBC_TUNABLES (even an empty one), or if Python was not started with this file: a notebook's %run, a debugger.
    """
    script = globals().get("__file__")  # `python - <train.py` has none
    asked = bool(script) and any(os.path.realpath(word) == os.path.realpath(script) for word in sys.orig_argv[1:])
    if not asked or sys.gettrace() or STARTED_OVER in sys._xoptions or "GLIBC_TUNABLES" in os.environ:
        return
    try:
        with open(PAGES, encoding="ascii") as file:
            chosen = "[madvise]" in file.read()
        if chosen:
            environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
            os.execve(sys.executable, [sys.executable, "-X", STARTED_OVER, *sys.orig_argv[1:]], environment)
    except OSError:  # no Linux, or no such setting
        return


def run() -> int:
    """Train; returns the exit code."""
    try:
        use_large_pages()
        from resnet_jax.cli import main  # imported late: it takes a second

        return main()
    except KeyboardInterrupt:  # before that import
        print("train.py: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
