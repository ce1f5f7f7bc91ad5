"""python -m resnet_jax: the same as train.py, from anywhere."""

import sys

from resnet_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m resnet_jax"))
