"""The fixtures of the made data set."""

from made_fixtures import _made, cache_dir, data_dir  # noqa: F401
