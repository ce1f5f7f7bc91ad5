"""Train a ResNet or a ResNeXt: python train.py --arch resnet18. --help tells every flag."""

import os
import sys


def use_large_pages() -> None:
    """Start this process over with 2 MiB pages for large arrays; glibc takes that from the first environment alone.

    XLA:CPU maps its memory anew each step: handing it out in pages of 4 KiB was a sixth of a step. An environment
    that has GLIBC_TUNABLES, even an empty one, is left as it is.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    use_large_pages()
    from resnet_jax.cli import main  # not before: it takes a second

    sys.exit(main())
