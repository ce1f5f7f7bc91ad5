"""Imports point one way: the house of DESIGN.md, read from the source itself."""

import ast
import graphlib
from pathlib import Path

import pytest

import resnet_jax
from resnet_jax.cli.main import COMMANDS

PACKAGE = Path(resnet_jax.__file__).parent

# what each part of the house may know beside itself; a part that is not here is a mistake
GROUND = {
    "arguments",
    "cgroups",
    "cores",
    "errors",
    "host_memory",
    "interrupts",
    "paths",
    "versions",
    "whole_file",
}
ALLOWED = {
    "errors": set(),
    "arguments": {"errors"},
    "versions": set(),
    "cgroups": set(),
    "cores": {"cgroups"},
    "host_memory": {"cgroups"},
    "interrupts": set(),
    "paths": {"errors"},
    "whole_file": set(),
    "ops": GROUND,
    "data": GROUND,
    "models": {"ops"} | GROUND,
    "interop": {"models", "ops"} | GROUND,
    "training": {"models", "ops", "data"} | GROUND,
    "reporting": {"training", "models", "ops", "data"} | GROUND,
    "runs": {"reporting", "training", "interop", "models", "ops", "data"} | GROUND,
    "cli": {"runs", "reporting", "training", "interop", "models", "ops", "data"} | GROUND,
    "__init__": {"runs", "reporting", "training", "interop", "models", "ops", "data"} | GROUND,
    "__main__": {"cli"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imported(tree: ast.Module) -> set[str]:
    """Every name that a file imports, at its top or inside a function, as a.b.c."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports would hide from this test"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_files(tree: ast.Module) -> set[str]:
    """The files of this package that a file imports: a.b.c is the file a.b.c, or a name in the file a.b."""
    names = {name for name in imported(tree) if name.split(".")[0] == "resnet_jax"}
    return {name if name in FILES else name.rpartition(".")[0] for name in names}


def part(module: str) -> str:
    """The part of the house that a file belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def test_it_reads_the_whole_package():
    assert {"resnet_jax", "resnet_jax.training.step", "resnet_jax.data.specs"} <= set(FILES)
    assert own_files(TREES["resnet_jax.training.loop"]) >= {"resnet_jax.data", "resnet_jax.training.step"}


@pytest.mark.parametrize("module", FILES)
def test_no_import_goes_back_up(module):
    known = {part(name) for name in own_files(TREES[module])} - {part(module)}
    assert known <= ALLOWED[part(module)]


def test_no_two_files_import_each_other():
    """Nor three in a ring: graphlib names those that do."""
    order = graphlib.TopologicalSorter({name: own_files(tree) for name, tree in TREES.items()})
    assert set(order.static_order()) == set(FILES)


def names(tree: ast.Module) -> set[str]:
    """Every variable and attribute that the code names; docstrings and comments do not count."""
    return {
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
    } | {name.rpartition(".")[2] for name in imported(tree)}


def test_only_one_file_names_pmap():
    assert {module for module, tree in TREES.items() if "pmap" in names(tree)} == {"resnet_jax.training.parallel"}


def test_only_the_files_of_checkpoints_name_orbax():
    users = {module for module, tree in TREES.items() if any(name.startswith("orbax") for name in imported(tree))}
    assert users == {"resnet_jax.runs.checkpoint", "resnet_jax.runs.stored"}


def test_only_the_data_names_tensorflow_datasets():
    users = {module for module, tree in TREES.items() if any("tensorflow" in name for name in imported(tree))}
    assert {part(module) for module in users} == {"data"}


def test_nothing_runs_what_a_user_wrote():
    """Two packages import the modules of their own tables when a name is first used, and the command that of its own.

    Each imports modules of this package alone, whatever the user has typed.
    """
    forbidden = {"eval", "exec", "__import__", "import_module", "pickle"}
    late = {"resnet_jax": 3, "resnet_jax.runs": 1, "resnet_jax.cli.main": 1}
    for module, tree in TREES.items():
        assert names(tree) & forbidden == ({"import_module"} if module in late else set()), module
    for module, count in late.items():
        calls = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)]
        targets = [ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func) == "importlib.import_module"]
        assert len(targets) == count
        assert all(target.lstrip("f")[1:].startswith("resnet_jax.") for target in targets), module


def test_every_command_of_the_table_is_there():
    """Each is a file of cli/ with a function of its name."""
    for name in COMMANDS:
        functions = {node.name for node in TREES[f"resnet_jax.cli.{name}"].body if isinstance(node, ast.FunctionDef)}
        assert name in functions


def test_the_core_of_training_knows_no_files_and_no_flags():
    forbidden = {"Config", "argparse", "tyro", "pathlib", "Path", "open"}
    core = {module: tree for module, tree in TREES.items() if part(module) == "training"}
    assert len(core) > 10
    for module, tree in core.items():
        roots = {name.split(".")[0] for name in imported(tree)}
        assert not (names(tree) | roots) & forbidden, module
