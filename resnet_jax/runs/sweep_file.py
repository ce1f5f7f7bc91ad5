"""sweep.json: the runs of a recipe over several seeds, and the statistics of their accuracies."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_jax.errors import ConfigError, one_line
from resnet_jax.whole_file import whole_file

SWEEP_FILE = "sweep.json"
LEVEL = 0.95  # of the interval of the mean
PARTS = ("validation", "test")
Record = dict[str, Any]
KEYS = {"recipe", "flags", "command", "config", "parameters", "runs", *(f"{part}_accuracy" for part in PARTS)}
RUN_KEYS = {"seed", "epochs", "seconds", "hardware"}  # of a run that has not failed
FAILED_KEYS = {"seed", "failed"}


def half_interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean, by Student's t with n - 1 degrees of freedom. n: at least 2."""
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def summary_of(values: Sequence[float]) -> Record | None:
    """n, mean, standard deviation (n - 1) and 95 % interval of the mean; None for no values.

    One value has neither a deviation nor an interval.
    """
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return {"n": 1, "mean": mean, "std": None, "interval": None}
    half = half_interval(values)
    return {"n": len(values), "mean": mean, "std": statistics.stdev(values), "interval": [mean - half, mean + half]}


def with_run(record: Record, run: Record) -> Record:
    """The record with one more run, or another one of its seed, and with the statistics of all of them."""
    others = [other for other in record["runs"] if other["seed"] != run["seed"]]
    return with_statistics(record | {"runs": sorted([*others, run], key=lambda run: run["seed"])})


def with_statistics(record: Record) -> Record:
    """The record with the statistics of its runs."""
    runs = record["runs"]
    return record | {key: summary_of([run[key] for run in runs if key in run]) for key in accuracy_keys()}


def accuracy_keys() -> list[str]:
    """The keys of accuracies, of a run and of the record."""
    return [f"{part}_accuracy" for part in PARTS]


def finished(record: Record) -> list[Record]:
    """The runs that have not failed."""
    return [run for run in record["runs"] if "failed" not in run]


def failed(record: Record) -> list[Record]:
    """The runs that have failed."""
    return [run for run in record["runs"] if "failed" in run]


def seconds_of(record: Record) -> float:
    """The mean duration of a run: training and evaluation, compilation included."""
    return statistics.fmean(run["seconds"] for run in finished(record))


def accuracy_text(summary: Record) -> str:
    """Mean, half the interval and n, as people write them: 0.9190 ± 0.0021 (n = 5)."""
    interval = summary["interval"]
    half = f" ± {(interval[1] - interval[0]) / 2:.4f}" if interval else ""
    return f"{summary['mean']:.4f}{half} (n = {summary['n']})"


def machine_text(record: Record) -> str:
    """The machine of the runs, with precision and kernels; several machines if the runs differ."""
    texts = []
    for run in finished(record):
        devices, cpu = run["hardware"]["devices"], run["hardware"]["cpu"]
        short = devices.removeprefix("cpu: 1 x cpu, ")
        texts.append(f"{cpu}: {short}" if devices.startswith("cpu: ") and cpu else short)
    return " and ".join(dict.fromkeys(texts))


def read_record(path: Path) -> Record:
    """The content of a sweep.json; ConfigError if it is no such file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check_record(record)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path}: it does not hold a sweep ({one_line(error)}); restore that file, or delete it: the next sweep "
            "writes it again from the runs beside it"
        ) from None
    return with_statistics(record)


def check_record(record: Any) -> None:
    """Raise ValueError for a value that is no record of a sweep."""
    if not isinstance(record, dict) or not isinstance(record.get("runs"), list):
        raise ValueError("it has no list of runs")
    if missing := sorted(KEYS - record.keys()):
        raise ValueError(f"it has no {missing[0]}")
    for run in record["runs"]:
        if not isinstance(run, dict) or not any(keys <= run.keys() for keys in (RUN_KEYS, FAILED_KEYS)):
            raise ValueError("a run is incomplete")
        if type(run["seed"]) is not int or any(type(run.get(key, 0.0)) is not float for key in accuracy_keys()):
            raise ValueError("a seed or an accuracy is no number")


def write_record(path: Path, record: Record) -> None:
    """Write the file as a whole, or leave the old one."""
    with whole_file(path) as part:
        part.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
