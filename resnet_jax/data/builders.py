"""A TFDS builder that works without TensorFlow. It imports TFDS (0.3 s): import it only to prepare data."""

import contextlib
import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.utils import Size

from resnet_jax.data.dataset import Arrays
from resnet_jax.data.prepared import VERSION, builder_name, prepared_dir
from resnet_jax.data.sources import download_error, read_files
from resnet_jax.data.specs import DatasetSpec, Splits, digests_of
from resnet_jax.errors import DataError


class RawImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images stored as raw bytes, in the order of the official files. TFDS's PNG features need TensorFlow.

    TFDS reads the result: tfds.builder_from_directory(DIR).as_data_source("train").
    metadata.json stores the digests of the content, so that prepared.py can check the data it reads.
    """

    VERSION = tfds.core.Version(VERSION)
    spec: DatasetSpec
    source: Splits | None = None  # arrays to use instead of the download

    @functools.cached_property
    def digests(self) -> tfds.core.MetadataDict:
        """TFDS writes it to metadata.json. _split_generators fills it once the arrays are read."""
        return tfds.core.MetadataDict()

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(shape=self.spec.image_shape, dtype=np.uint8, encoding="bytes")
        label = tfds.features.ClassLabel(names=list(self.spec.class_names))
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
            metadata=self.digests,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        splits = self.source
        if splits is None:
            paths = dl_manager.download({file.name: self.spec.url + file.name for file in self.spec.files})
            splits = read_files(self.spec, tuple(Path(paths[file.name]) for file in self.spec.files))
        self.digests["digests"] = digests_of(splits)._asdict()
        return {"train": self._generate_examples(splits.train), "test": self._generate_examples(splits.test)}

    def _generate_examples(self, arrays: Arrays) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(arrays.images, arrays.labels, strict=True)):
            yield i, {"image": image, "label": int(label)}


def builder_class(spec: DatasetSpec) -> type[RawImages]:
    """The builder class of `spec`. TFDS reads the name and the registered checksums from the class."""
    url_infos = {spec.url + file.name: UrlInfo(Size(file.size), file.sha256, file.name) for file in spec.files}
    attributes = {"name": builder_name(spec), "spec": spec, "url_infos": url_infos}
    return type("RawImages", (RawImages,), attributes, skip_registration=True)


def prepare(spec: DatasetSpec, data_dir: Path, source: Splits | None) -> None:
    """Writes the data set into `data_dir`, from `source` or else from the download.

    TFDS writes to a folder incomplete.* and renames it at the end, so the final folder is always complete.
    If another process finished first, its folder is kept. Raises DownloadError, or DataError if writing fails.
    """
    config = tfds.download.DownloadConfig(force_checksums_validation=True, try_download_gcs=False)
    try:
        with _quiet():
            builder = builder_class(spec)(data_dir=data_dir, file_format="array_record")
            builder.source = source
            builder.download_and_prepare(download_config=config)
    except NonMatchingChecksumError:
        raise download_error(spec, "a file has another sha256 than TFDS registers for it") from None
    except (tfds.download.DownloadError, requests.RequestException) as error:
        raise download_error(spec, " ".join(str(error).split())) from None
    except OSError as error:
        if not prepared_dir(spec, data_dir).exists():
            message = f"cannot write to the data folder {data_dir}: {error}; pass --data-dir FOLDER"
            raise DataError(message) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the lines and bars of TFDS; the caller's log reports the same in one line."""
    tfds.disable_progress_bar()  # this also avoids tqdm's monitor thread, which once blocked the exit of a process
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
