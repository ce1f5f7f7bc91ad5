"""Train a ResNet or a ResNeXt: python train.py --arch resnet18. --help tells every flag."""

import contextlib
import os
import sys
from pathlib import Path

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # where Linux says who gets 2 MiB pages
STARTED_OVER = "resnet_jax_pages"


def use_large_pages() -> None:
    """Start this process over with 2 MiB pages under large arrays, which glibc (from 2.35) takes at its start alone.

    XLA:CPU maps its memory anew each step: with its own kernels a sixth of resnet18's step at 96x96 went into handing
    that out in pages of 4 KiB. Nothing is done where Linux gives such pages to all or to none, in an environment that
    has GLIBC_TUNABLES (even an empty one), or where this file is not what Python was started with: a notebook's %run,
    a debugger.
    """
    script = globals().get("__file__")  # `python - <train.py` has none
    asked = bool(script) and any(os.path.realpath(word) == os.path.realpath(script) for word in sys.orig_argv[1:])
    if not asked or sys.gettrace() or STARTED_OVER in sys._xoptions or "GLIBC_TUNABLES" in os.environ:
        return
    with contextlib.suppress(OSError):
        if "[madvise]" in PAGES.read_text():
            environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
            os.execve(sys.executable, [sys.executable, "-X", STARTED_OVER, *sys.orig_argv[1:]], environment)


if __name__ == "__main__":
    use_large_pages()
    from resnet_jax.cli import main  # not before: it takes a second

    sys.exit(main())
