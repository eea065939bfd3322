"""The package's shape: who may import whom, and what must not appear anywhere."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "nerf_tf"
MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))
PROGRAMS = [*MODULES, *sorted((ROOT / "tools").rglob("*.py"))]

# Imports point one way: files, untrusted, geometry, field <- data, render <- train <- app. A field reaches `render` as
# a callable.
BELOW = {
    "files": set(),
    "untrusted": set(),
    "geometry": set(),
    "field": set(),
    "data": {"files", "untrusted", "geometry", "field"},
    "render": {"files", "untrusted", "geometry"},
    "train": {"files", "untrusted", "geometry", "field", "data", "render"},
    "options": set(),
    "config": {"untrusted", "field", "data", "render", "train", "options"},
    "paths": {"untrusted", "geometry", "data"},
    "planning": {"field", "render", "train"},
    "build": {"geometry", "field", "data", "render", "train", "config", "planning"},
    "evaluation": {"files", "geometry", "field", "data", "render", "train"},
    "run": {"files", "geometry", "data", "render", "train", "config", "planning", "build", "evaluation"},
    "app": {"data", "train", "config", "paths", "planning", "build", "evaluation", "run"},
    "__main__": {"config", "app"},
    "__init__": set(),
}
# Dependencies that every installation has; whatever else a function wants, it imports itself.
# TensorFlow's own classes are made of protobuf's, which is a part of "google".
CORE = {"tensorflow", "google", "keras", "numpy", "imageio", "configargparse", "absl", "PIL", "tqdm"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "common", "types", "math"}


def layer_of(path: Path) -> str:
    """`geometry` for nerf_tf/geometry/camera.py, `app` for nerf_tf/app.py."""
    return path.relative_to(ROOT / PACKAGE).with_suffix("").parts[0]


def imported(node: ast.AST) -> list[str]:
    """Full names of what an import statement imports; of `from a import b` both a and a.b, as b may be a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are written in full"
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def imports(path: Path) -> set[str]:
    """Everything a file imports, at its top, inside functions and for type checking."""
    return {name for node in ast.walk(parse(path)) for name in imported(node)}


def top_level(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a file is imported: everything but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from top_level(child)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def calls(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every call."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def test_the_layers_are_all_there():
    layers = {layer_of(path) for path in MODULES}
    assert layers <= set(BELOW), "a new part of the package: give it a place in BELOW"
    assert {"geometry", "field", "data", "render", "train"} <= layers


def test_imports_point_one_way():
    layers = {layer_of(path) for path in MODULES}
    wrong = []
    for path in MODULES:
        used = {name.split(".")[1] for name in imports(path) if name.startswith(f"{PACKAGE}.")}
        # `from nerf_tf import __version__` names no module.
        upwards = used & layers - BELOW[layer_of(path)] - {layer_of(path)}
        wrong += [f"{path.relative_to(ROOT)} imports {PACKAGE}.{name}" for name in sorted(upwards)]
    assert wrong == []


def test_the_package_imports_neither_tools_nor_tests():
    outside = {"tools", "tests", "conftest"}
    assert [path for path in MODULES if {name.split(".")[0] for name in imports(path)} & outside] == []


def test_importing_the_package_needs_core_dependencies_only():
    known = CORE | {PACKAGE} | set(sys.stdlib_module_names)
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {name}"
        for path in MODULES
        for node in top_level(parse(path))
        for name in imported(node)
        if name.split(".")[0] not in known
    ]
    assert wrong == []


def test_no_module_is_a_drawer_for_odds_and_ends():
    assert [path for path in MODULES if FORBIDDEN_NAMES & set(path.relative_to(ROOT).with_suffix("").parts)] == []


def test_the_package_logs_and_does_not_print():
    prints = {"print", "tf.print"}
    assert [f"{path}:{line}" for path in MODULES for line, name in calls(path) if name in prints] == []


def test_no_file_of_a_user_can_run_code():
    # Neither pickles nor NumPy's object arrays are loaded; weight files have a reader that runs nothing.
    risky = {"pickle.load", "pickle.loads", "eval", "exec"}
    wrong = [f"{path}:{line} {name}" for path in PROGRAMS for line, name in calls(path) if name in risky]
    for path in PROGRAMS:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                wrong.append(f"{path}:{node.value.lineno} allow_pickle={ast.unparse(node.value)}")
    assert wrong == []


def test_no_image_is_read_with_options_that_imageio_dropped():
    dropped = {"ignoregamma", "apply_gamma"}
    wrong = [
        path
        for path in PROGRAMS
        for node in ast.walk(parse(path))
        if (isinstance(node, ast.keyword) and node.arg in dropped)
        or (isinstance(node, ast.Constant) and node.value in dropped)
    ]
    assert wrong == []


def test_the_readme_says_where_every_module_is_read():
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Reading the code")[2].partition("\n## ")[0]
    folders = {path for path in MODULES if "procedural" in path.parts}
    names = {path.name for path in MODULES if path.name != "__init__.py" and path not in folders}
    assert {name for name in names if not re.search(rf"[`/]{re.escape(name)}`", text)} == set()
    assert "`data/procedural/`" in text
