"""python -m resnet_jax.data: prepares a data set.

Exit codes: 0 prepared and verified; 2 bad input, told in one line; 3 the same for a failed download, for
which another source (scripts/debian_dataset.sh, then --source-dir) may help.
"""

import argparse
import sys

from resnet_jax.data.dataset import default_data_dir, load
from resnet_jax.data.sources import DownloadError
from resnet_jax.errors import DataError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m resnet_jax.data", description="Prepare and verify a data set.")
    parser.add_argument("--dataset", default="fashion_mnist", help="default: %(default)s")
    parser.add_argument("--data-dir", help=f"where it is prepared; default: {default_data_dir()}")
    parser.add_argument("--source-dir", help="a folder that holds the official files")
    args = parser.parse_args(argv)
    try:
        load(args.dataset, args.data_dir, args.source_dir)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, DownloadError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
