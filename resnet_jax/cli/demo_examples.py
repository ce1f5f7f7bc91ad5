"""The examples of the demo page: pictures of the run's test set, if they are on this machine."""

from typing import NamedTuple

import numpy as np

from resnet_jax.data import DATASETS, Arrays
from resnet_jax.data.catalogue import default_data_dir
from resnet_jax.data.prepared import prepared_dir, read_prepared
from resnet_jax.errors import DataError, UserError
from resnet_jax.paths import user_path
from resnet_jax.runs.build import load_data
from resnet_jax.runs.config import Config
from resnet_jax.runs.predictor import Predictor

COUNT = 10  # on the page


class Example(NamedTuple):
    """A picture (H, W, C) uint8 of the test set, and the name of its class."""

    pixels: np.ndarray
    name: str


def examples_or_reason(predictor: Predictor) -> list[Example]:
    """Examples of the run's test set. If they cannot be read, none, and a printed line gives the reason."""
    try:
        return examples_of(predictor)
    except UserError as error:
        print(f"the page has no examples: {error}")
        return []


def examples_of(predictor: Predictor) -> list[Example]:
    """The first test picture of each class, of up to COUNT classes. DataError if they cannot be read."""
    if predictor.config is None:
        raise DataError("a folder that convert made does not name its data set")
    arrays, names = test_pictures(predictor.config)
    if names != tuple(predictor.class_names):
        raise DataError("the classes of the data set have changed since the run")
    labels = list(arrays.labels)
    rows = [labels.index(label) for label in range(len(names)) if label in labels]
    return [Example(np.asarray(arrays.images[row]), names[labels[row]]) for row in rows[:COUNT]]


def test_pictures(config: Config) -> tuple[Arrays, tuple[str, ...]]:
    """The test part of a run's data set and its class names. Nothing is downloaded."""
    held = config.data
    if held.data_folder:
        dataset = load_data(config)
        part = dataset.test or dataset.validation
        if part is None:
            raise DataError(f"{held.data_folder} has neither a test nor a validation part")
        return part, tuple(dataset.class_names)
    spec = DATASETS.get(held.dataset)
    if spec is None:
        raise DataError(f"the data set {held.dataset!r} is unknown here")
    folder = prepared_dir(spec, user_path(held.data_dir or default_data_dir(), "data_dir", DataError))
    if not folder.exists():
        raise DataError(f"{held.dataset} is not prepared on this machine ({folder} does not exist)")
    return read_prepared(spec, folder).test, spec.class_names
