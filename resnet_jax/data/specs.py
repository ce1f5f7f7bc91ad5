"""The table of named data sets: what each contains, where its files are, and their SHA-256 digests."""

import hashlib
import struct
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from resnet_jax.data.dataset import Arrays


class Splits(NamedTuple):
    """A named data set, uint8, in the order of its official files."""

    train: Arrays
    test: Arrays


@dataclass(frozen=True)
class SourceFile:
    """A file on its server. size (in bytes) and sha256 are those that TFDS registers for its URL."""

    name: str
    size: int
    sha256: str


class Digests(NamedTuple):
    """SHA-256 of each array in idx form. If the official files are idx, these are their uncompressed digests."""

    train_images: str
    train_labels: str
    test_images: str
    test_labels: str


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    files: in the order train images, train labels, test images, test labels (idx), or one archive (cifar10).
    digests: None if no digest of the content is known; then only files with the registered sha256 are accepted.
    mean_std: mean and deviation of all official training images scaled to [0, 1]: one number, or one per channel.
    None: they are measured when a run needs them.
    unread: names of other forms of the same data that are not read, because they are pickled or have no known digest.
    debian_dir, debian_package: where Debian installs the same files, recompressed.
    digest_hint: what an unexpected digest may mean, for the error message.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    num_train: int
    num_test: int
    url: str
    files: tuple[SourceFile, ...]
    layout: Literal["idx", "cifar10"]
    digests: Digests | None = None
    mean_std: tuple[float | tuple[float, ...], float | tuple[float, ...]] | None = None
    unread: tuple[str, ...] = ()
    debian_dir: str | None = None
    debian_package: str | None = None
    digest_hint: str = ""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def channel_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """mean_std with a number for each channel."""
        if self.mean_std is None:
            return None
        channels = self.image_shape[-1]
        mean, std = (value if isinstance(value, tuple) else (value,) * channels for value in self.mean_std)
        return mean, std


def idx_header(shape: tuple[int, ...]) -> bytes:
    """The first bytes of an idx file of uint8: magic 0x000008NN, then the NN dimensions as big-endian int32.

    Source: http://yann.lecun.com/exdb/mnist/
    """
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)


def digests_of(splits: Splits) -> Digests:
    """The four digests. As in official idx files, gray images are hashed as (N, H, W) and labels as bytes."""
    arrays = (splits.train.images, splits.train.labels, splits.test.images, splits.test.labels)
    return Digests(*map(_digest, arrays))


def _digest(array: np.ndarray) -> str:
    shape = array.shape[:-1] if array.ndim == 4 and array.shape[-1] == 1 else array.shape
    digest = hashlib.sha256(idx_header(shape))
    digest.update(np.ascontiguousarray(array, np.uint8).data)
    return digest.hexdigest()


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="fashion_mnist",
            image_shape=(28, 28, 1),
            class_names=(
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ),
            num_train=60_000,
            num_test=10_000,
            url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            files=(
                SourceFile(
                    "train-images-idx3-ubyte.gz",
                    26421880,
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                ),
                SourceFile(
                    "train-labels-idx1-ubyte.gz",
                    29515,
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                ),
                SourceFile(
                    "t10k-images-idx3-ubyte.gz",
                    4422102,
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                ),
                SourceFile(
                    "t10k-labels-idx1-ubyte.gz",
                    5148,
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                ),
            ),
            layout="idx",
            digests=Digests(
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
            mean_std=(0.286041, 0.353024),
            debian_dir="/usr/share/datasets/fashion-mnist",
            debian_package="dataset-fashion-mnist",
            digest_hint="the version from before 31 August 2017 leaks test images into the training set",
        ),
        DatasetSpec(
            name="mnist",
            image_shape=(28, 28, 1),
            class_names=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
            num_train=60_000,
            num_test=10_000,
            url="https://storage.googleapis.com/cvdf-datasets/mnist/",
            files=(
                SourceFile(
                    "train-images-idx3-ubyte.gz",
                    9912422,
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                ),
                SourceFile(
                    "train-labels-idx1-ubyte.gz",
                    28881,
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                ),
                SourceFile(
                    "t10k-images-idx3-ubyte.gz",
                    1648877,
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                ),
                SourceFile(
                    "t10k-labels-idx1-ubyte.gz",
                    4542,
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                ),
            ),
            layout="idx",
            digests=Digests(
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
            mean_std=(0.1307, 0.3081),
        ),
        DatasetSpec(
            name="kmnist",
            image_shape=(28, 28, 1),
            class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
            num_train=60_000,
            num_test=10_000,
            url="http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
            files=(
                SourceFile(
                    "train-images-idx3-ubyte.gz",
                    18165135,
                    "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
                ),
                SourceFile(
                    "train-labels-idx1-ubyte.gz",
                    29497,
                    "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
                ),
                SourceFile(
                    "t10k-images-idx3-ubyte.gz",
                    3041136,
                    "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
                ),
                SourceFile(
                    "t10k-labels-idx1-ubyte.gz",
                    5120,
                    "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
                ),
            ),
            layout="idx",
            mean_std=(0.1918, 0.3483),
        ),
        DatasetSpec(
            name="cifar10",
            image_shape=(32, 32, 3),
            class_names=(
                "airplane",
                "automobile",
                "bird",
                "cat",
                "deer",
                "dog",
                "frog",
                "horse",
                "ship",
                "truck",
            ),
            num_train=50_000,
            num_test=10_000,
            url="https://www.cs.toronto.edu/~kriz/",
            files=(
                SourceFile(
                    "cifar-10-binary.tar.gz",
                    170052171,
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                ),
            ),
            layout="cifar10",
            mean_std=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
            unread=("cifar-10-python.tar.gz", "cifar-10-batches-py", "cifar-10-batches-bin"),
        ),
    )
}


def owner_of(sha256: str) -> str | None:
    """The named data set that has a file, packed or unpacked, of this SHA-256 digest; None if no table has it."""
    for spec in DATASETS.values():
        if sha256 in (*(file.sha256 for file in spec.files), *(spec.digests or ())):
            return spec.name
    return None
