"""python -m resnet_jax: train.py from anywhere, and the other commands: convert, export, summary."""

import sys

from resnet_jax.cli import command

if __name__ == "__main__":
    sys.exit(command(prog="python -m resnet_jax"))
