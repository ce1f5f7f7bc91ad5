"""Train a ResNet or a ResNeXt: python train.py --arch resnet18. --help tells every flag."""

import sys

from resnet_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
