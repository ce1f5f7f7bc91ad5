"""The settings of the documentation, which `make docs` builds.

Sphinx reads the pages from the root of the repository, so that a link between two of its files is the same on this site
and in the repository.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import api_pages
from sphinx.application import Sphinx  # pyright: ignore[reportMissingImports]  (the extra dev has no Sphinx)

ROOT = Path(__file__).parents[1]
PAGES = ("docs", "notebooks", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")

project = "resnet_jax"
author = "the authors of resnet_jax"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "notebooks/*.ipynb", *(name for name in PAGES if name.endswith(".md"))]
exclude_patterns = [path.name for path in ROOT.iterdir() if path.name not in PAGES]  # they need not be searched
nitpicky = False

highlight_language = "none"  # blocks without a language are commands, output and folders
html_theme = "furo"
html_title = "resnet_jax"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
smartquotes = False  # quotes belong to the code that a sentence quotes
templates_path = []

nb_execution_mode = "off"  # tests/test_notebooks.py runs the notebooks
myst_enable_extensions = []  # a dollar sign is a dollar sign
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 90


def leave_out_empty_patterns(app: Sphinx, docname: str, source: list[str]) -> None:
    """Drop the patterns of docs/index.md that match no page. Sphinx would warn about them."""
    if docname == root_doc:
        lines = source[0].splitlines()
        kept = [line for line in lines if not line.endswith("*") or any(Path(__file__).parent.glob(f"{line}.md"))]
        source[0] = "\n".join(kept) + "\n"


def write_start_page(app: Sphinx, error: Exception | None) -> None:
    """The page that a browser opens for the folder: it leads to docs/index.html."""
    if error is None and app.builder.format == "html":
        page = '<!doctype html><meta charset="utf-8"><title>resnet_jax</title>'
        page += '<meta http-equiv="refresh" content="0; url=docs/index.html"><a href="docs/index.html">resnet_jax</a>\n'
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> None:
    api_pages.setup(app)
    app.connect("source-read", leave_out_empty_patterns)
    app.connect("build-finished", write_start_page)
