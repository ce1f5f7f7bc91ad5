"""python -m resnet_jax.data: prepares a data set.

Exit codes: 0, the data is prepared and verified; 2, invalid input; 3, the download failed. Errors are one line.
After a failed download another source may work: scripts/debian_dataset.sh, then --source-dir.
"""

import argparse
import sys

from resnet_jax.data.catalogue import default_data_dir, load
from resnet_jax.data.sources import DownloadError
from resnet_jax.errors import DataError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m resnet_jax.data", description="Prepare and verify a data set.")
    parser.add_argument("--dataset", default="fashion_mnist", help="default: %(default)s")
    parser.add_argument("--data-dir", help=f"the folder to prepare it in; default: {default_data_dir()}")
    parser.add_argument("--source-dir", help="a folder with the official files")
    args = parser.parse_args(argv)
    try:
        load(args.dataset, data_dir=args.data_dir, source_dir=args.source_dir)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, DownloadError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
