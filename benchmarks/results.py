"""Write the table of results into README.md and docs/recipes.md, from the sweeps in results/.

python benchmarks/results.py            write the tables
python benchmarks/results.py --check    exit with code 1 if a table differs from the files
"""

import argparse
import re
import sys
from pathlib import Path

from resnet_jax.errors import ConfigError, UserError
from resnet_jax.runs.flags import recipes
from resnet_jax.runs.results import read_results
from resnet_jax.runs.sweep_file import Record, accuracy_text, failed, machine_text, seconds_of
from resnet_jax.training.display import duration
from resnet_jax.whole_file import whole_file

ROOT = Path(__file__).parents[1]
PAGES = {ROOT / "README.md": "", ROOT / "docs" / "recipes.md": "../"}  # page -> the way from there to the repository
START = "<!-- python benchmarks/results.py writes this table -->"
END = "<!-- end of the table -->"
COLUMNS = ("recipe", "test accuracy", "parameters", "epochs", "time of a run", "machine", "command")
EMPTY = "No sweep is recorded in `results/` yet."


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the table of results into the pages.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with code 1 if a table is old")
    check = parser.parse_args().check
    try:
        results = read_results()
        old = [page for page, up in PAGES.items() if not is_current(page, up, results)]
    except UserError as error:
        parser.error(str(error))
    for page in old:
        print(f"{page.relative_to(ROOT)}: {'the table differs from results/' if check else 'written'}")
        if not check:
            text = with_table(page.read_text(encoding="utf-8"), table(results, PAGES[page]))
            with whole_file(page) as part:
                part.write_text(text, encoding="utf-8")
    sys.exit(1 if check and old else 0)


def is_current(page: Path, up: str, results: dict[str, Record]) -> bool:
    """Whether the table of a page is the one of the results."""
    text = page.read_text(encoding="utf-8")
    return with_table(text, table(results, up)) == text


def with_table(text: str, new: str) -> str:
    """The text of a page with another table between the two marks; ValueError for a page without them."""
    pattern = re.compile(f"({re.escape(START)}\n).*?({re.escape(END)})", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"the page needs {START} and {END} once each")
    return pattern.sub(lambda found: f"{found[1]}\n{new}\n\n{found[2]}", text)


def table(results: dict[str, Record], up: str = "") -> str:
    """The results in Markdown, the highest accuracy first. up: the way from the page to the repository."""
    measured = [name for name, record in results.items() if record["test_accuracy"]]
    if not measured:
        return EMPTY
    measured.sort(key=lambda name: -results[name]["test_accuracy"]["mean"])
    lines = [row_of(*COLUMNS), row_of(*("---" for _ in COLUMNS))]
    return "\n".join([*lines, *(row_of(*cells(name, results[name], up)) for name in measured)])


def cells(name: str, record: Record, up: str) -> list[str]:
    """The cells of a sweep. name: of its file."""
    recipe, epochs = record["recipe"], record["config"]["epochs"]
    if recipe not in recipes():
        raise ConfigError(f"results/{name}.json: {recipe!r} is no recipe in configs/")
    lost = f", {len(failed(record))} more failed" if failed(record) else ""
    flags = f", `{' '.join(record['flags'])}`" if record["flags"] else ""
    return [
        f"[{recipe}]({up}configs/{recipe}.toml){flags}",
        f"[{accuracy_text(record['test_accuracy'])}]({up}results/{name}.json){lost}",
        f"{record['parameters']:,}",
        str(epochs),
        duration(seconds_of(record)),
        machine_text(record),
        f"`{record['command']}`",
    ]


def row_of(*columns: str) -> str:
    """A row of the table."""
    return f"| {' | '.join(columns)} |"


if __name__ == "__main__":
    main()
