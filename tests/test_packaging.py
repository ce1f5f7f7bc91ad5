"""pyproject.toml and the files of pinned versions agree, and the package says that it has types."""

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LISTED = [*PROJECT["dependencies"], *EXTRAS["report"], *EXTRAS["tensorboard"], *EXTRAS["test"]]
REQUIREMENTS = {
    canonicalize_name(requirement.name): requirement.specifier
    for requirement in map(Requirement, LISTED)
    if requirement.name != PROJECT["name"]
}


def pins(name: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return {package: Version(version) for package, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("package", REQUIREMENTS)
def test_the_oldest_versions_are_the_lower_bounds(package):
    (lower,) = [part.version for part in REQUIREMENTS[package] if part.operator == ">="]
    assert pins("constraints-oldest.txt")[package] == Version(lower)


@pytest.mark.parametrize("package", REQUIREMENTS)
def test_the_pinned_versions_are_admitted(package):
    assert pins("constraints.txt")[package] in REQUIREMENTS[package]


def test_type_checkers_read_the_annotations():
    assert files("resnet_jax").joinpath("py.typed").is_file()


def test_the_templates_of_reports_are_inside_the_package():
    """The wheel contains the whole folder resnet_jax; nothing there is excluded by an ignore file."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "resnet_jax" in wheel["only-include"]
    assert "exclude" not in wheel
    folder = files("resnet_jax").joinpath("reporting", "templates")
    assert {"report.html", "compare.html", "base.html", "parts.html", "style.css"} == {f.name for f in folder.iterdir()}
