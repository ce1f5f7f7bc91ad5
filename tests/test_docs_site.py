"""The pages of the documentation are reachable, their links and quotations are right. Sphinx is not needed."""

import fnmatch
import json
import re
from pathlib import Path

import api_pages
import pytest

import resnet_jax
from benchmarks import results
from resnet_jax import errors
from resnet_jax.runs.results import read_results

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md")), *NOTEBOOKS]
LINK = re.compile(r"(?<!`)\[[^\]\n]+\]\(([^)\s]+)\)")
FIGURE = re.compile(r"\b0\.\d{4}\b|\b\d+ min \d+ s\b")


def text_of(page: Path) -> str:
    """The Markdown of a page or of a notebook, without blocks of code."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_of_the_repository(page):
    for link in LINK.findall(text_of(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link  # Sphinx has no page for a folder
        assert ROOT in target.parents, link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_one_table_of_contents():
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```", (DOCS / "index.md").read_text(), re.DOTALL | re.MULTILINE)
    entries = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    pages = {path.relative_to(ROOT).with_suffix("").as_posix() for path in PAGES} - {"docs/index"}
    wanted = {
        entry: set(fnmatch.filter(pages, str(Path("docs", entry)) if ".." not in entry else entry.removeprefix("../")))
        for entry in entries
    }
    assert [entry for entry, found in wanted.items() if not found and "*" not in entry] == []
    found = [page for pages_of_entry in wanted.values() for page in pages_of_entry]
    assert sorted(found) == sorted(pages)


def test_no_page_loads_something_from_another_server():
    """Pictures are files of the repository."""
    for page in PAGES:
        assert not re.search(r"!\[[^\]]*\]\(https?:|<(img|script|link|iframe)[^>]*https?:", page.read_text()), page


def test_the_recipes_have_the_results_of_their_headers():
    """Outside the table that benchmarks/results.py writes; tests/test_results.py compares that one."""
    page = results.with_table((DOCS / "recipes.md").read_text(), "")
    configs = {path.name: path.read_text() for path in (ROOT / "configs").glob("*.toml")}
    assert all(f"../configs/{name}" in page for name in configs)
    figures = FIGURE.findall(page)
    assert figures or read_results()
    headers = " ".join(configs.values()).replace("\n# ", " ")
    assert [figure for figure in figures if figure not in headers] == []


def test_the_messages_are_those_of_the_code():
    """faults.md shortens the variable parts to three dots."""
    messages = re.findall(r"^\| `([^`]+)` \| [^|]+ \| [^|]+ \|$", (DOCS / "faults.md").read_text(), re.MULTILINE)
    assert len(messages) > 20
    # A message may be several literals, one a line; its values are in braces.
    sources = [
        re.sub(r"\{[^{}]*\}", "...", re.sub(r'"\s*\n\s*f?"', "", path.read_text()))
        for path in sorted((ROOT / "resnet_jax").rglob("*.py"))
    ]
    for message in messages:
        parts = [part.strip() for part in message.split("...") if part.strip()]
        assert any(all(part in source for part in parts) for source in sources), message


def test_the_errors_are_those_of_the_package():
    listed = set(re.findall(r"^\| `(\w+Error)` \|", (DOCS / "faults.md").read_text(), re.MULTILINE))
    own = {error.__name__ for error in errors.UserError.__subclasses__() if error.__module__ == errors.__name__}
    assert listed == own


def test_the_reference_lists_every_public_name_once():
    listed = re.findall(r"^\.\. auto(?:class|function):: (.+)$", api_pages.reference(), re.MULTILINE)
    assert len(set(listed)) == len(listed)
    assert {f"resnet_jax.{name}" for name in resnet_jax.NAMES} <= set(listed)
    modules = {name for name in resnet_jax.__all__ if name not in resnet_jax.NAMES}
    assert {f"resnet_jax.{name}" for name in modules} <= set(api_pages.MODULES)
    assert (DOCS / "reference.md").read_text().count(api_pages.MARK) == 1


def test_a_docstring_becomes_restructured_text():
    docstring = """Add *blocks* to `arch`.

    stage, key_: where the blocks go, and
        what initialises them. width: of all stages.
    Raises ConfigError.

        arch = grow(arch)

    Source: arXiv:1511.05641, section 2.
    """
    lines = api_pages.restructured(docstring.splitlines(), {"stage", "key_", "width"})
    assert [line for line in lines if line] == [
        r"Add \*blocks\* to ``arch``.",
        r"- **stage, key\_**: where the blocks go, and what initialises them.",
        "- **width**: of all stages.",
        "Raises ConfigError.",
        "::",
        "    arch = grow(arch)",
        "Source: `arXiv:1511.05641 <https://arxiv.org/abs/1511.05641>`__, section 2.",
    ]


def test_a_signature_leaves_out_the_fields_of_flax():
    partial = api_pages.show_signature(None, "function", "ResNet18", resnet_jax.ResNet18, None, "()", None)
    assert "parent" not in str(partial)
    shown = api_pages.show_signature(None, "class", "Residual", resnet_jax.Residual, None, "()", None)
    assert shown is not None
    assert str(shown[0]).startswith("(num_channels: int, use_1x1conv: bool = False, strides: ")
    assert "parent" not in str(shown[0])
    assert "norm: Callable[..., Any] = BatchNorm" in str(shown[0])
