"""The package's structure: allowed imports and forbidden constructs."""

from __future__ import annotations

import ast
import functools
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "nerf_tf"
MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))
PROGRAMS = [*MODULES, *sorted((ROOT / "tools").rglob("*.py"))]

CORE_ROOMS = {"geometry", "data", "field", "render", "train"}
# What goes beyond the paper: a faster way to train and render, people's own captures, and more than one device.
FURTHER_ROOMS = {"marching", "hash_grid", "captures", "distribution"}
SERVICE_ROOMS = {"settings", "memory", "storage", "safety", "output", "evaluation", "camera_paths"}
PARTS = CORE_ROOMS | FURTHER_ROOMS | SERVICE_ROOMS
# Each room or module, and what it may import: only what stands above it here. Fields reach `render` as callables, and
# flags end in `settings`.
MAY_IMPORT: dict[str, set[str]] = {
    "storage": set(),
    "geometry": set(),
    "compaction": set(),
    "tensor_float": set(),
    "field": {"compaction", "tensor_float"},
    "settings": {"storage"},
    "memory": {"field"},
    "data": {"storage", "geometry"},
    "render": {"geometry"},
    "train": {"geometry", "field", "data", "render"},
    "marching": {"storage", "geometry", "compaction", "data", "render"},
    "hash_grid": {"geometry", "field", "data", "render", "train", "marching"},
    "distribution": {"geometry", "data", "render", "train", "hash_grid"},
    "camera_paths": {"storage", "geometry", "data"},
    "captures": {"storage", "geometry", "data", "camera_paths"},
    "output": {"storage", "render"},
    "evaluation": {"storage", "tensor_float", "render", "output"},
    "safety": CORE_ROOMS | {"storage", "settings", "hash_grid", "distribution", "camera_paths", "captures"},
    "build_hash_grid": PARTS | {"tensor_float"},
    "build": PARTS | {"tensor_float", "build_hash_grid"},
    "run": PARTS | {"build"},
    "training": PARTS | {"build", "run"},
    "app": PARTS | {"build", "run", "training"},
    "library": PARTS | {"build", "app"},
    "__init__": {"library"},
    "__main__": {"settings", "app"},
    "tools/support": PARTS | {"build"},
    "tools/still_life": {"storage", "geometry", "data"},
    "tools": PARTS | {"tensor_float", "build", "tools/support", "tools/still_life"},
}
# Dependencies that every installation has; whatever else a function wants, it imports itself.
# TensorFlow's own classes are made of protobuf's, which is a part of "google".
CORE = {"tensorflow", "google", "keras", "numpy", "imageio", "configargparse", "absl", "PIL", "tqdm"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "common", "types", "math"}


def room_of(path: Path) -> str:
    """`geometry` for nerf_tf/geometry/camera.py, `app` for nerf_tf/app.py, `tools/support` for a file there."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == PACKAGE:
        return parts[1]
    return "/".join(parts[:-1])


def modules_of(path: Path) -> set[Path]:
    """The project's files that a file imports; the package's own face, nerf_tf/__init__.py, only where it is named."""
    found = set()
    for name in imports(path) - {PACKAGE}:
        for base in (ROOT, ROOT / "tools"):
            module = base.joinpath(*name.split("."))
            found |= {file for file in (module.with_suffix(".py"), module / "__init__.py") if file in PROGRAMS}
    return found - {path}


def imported(node: ast.AST) -> list[str]:
    """Full names of what an import statement imports; of `from a import b` both a and a.b, as b may be a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are written in full"
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


@functools.cache
def imports(path: Path) -> set[str]:
    """Everything a file imports, at its top, inside functions and for type checking."""
    return {name for node in ast.walk(parse(path)) for name in imported(node)}


def top_level(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when a file is imported: everything but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from top_level(child)


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def calls(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every call."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


def test_every_room_has_its_place():
    assert {room_of(path) for path in PROGRAMS} == set(MAY_IMPORT)


def test_imports_follow_the_table():
    wrong = [
        f"{path.relative_to(ROOT)} imports {module.relative_to(ROOT)}"
        for path in PROGRAMS
        for module in sorted(modules_of(path))
        if room_of(module) not in MAY_IMPORT[room_of(path)] | {room_of(path)}
    ]
    assert wrong == []


def test_the_table_points_one_way():
    seen: set[str] = set()
    for room, allowed in MAY_IMPORT.items():
        assert allowed <= seen, f"{room} may import {allowed - seen}, which stand below it"
        seen.add(room)


def test_the_core_knows_nothing_beyond_it():
    beside = {"storage", "compaction", "tensor_float"}  # files, and what XLA and GPUs need
    assert [room for room in CORE_ROOMS if MAY_IMPORT[room] - CORE_ROOMS - beside] == []


def test_no_files_import_each_other_in_a_circle():
    graphlib.TopologicalSorter({path: modules_of(path) for path in PROGRAMS if path.name != "__init__.py"}).prepare()


def test_only_settings_and_the_program_see_flags():
    allowed = {"settings", "__main__", "app"}  # the app takes absl's numbers of verbosity
    wrong = [
        path
        for path in PROGRAMS
        if room_of(path) not in allowed and any(name.split(".")[0] == "absl" for name in imports(path))
    ]
    assert wrong == []


def test_one_module_decides_about_tensor_float_32():
    switch = "enable_tensor_float_32_execution"
    assert [path.stem for path in PROGRAMS for _, name in calls(path) if name.endswith(switch)] == ["tensor_float"]


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


def test_the_readme_names_every_room():
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Reading the code")[2].partition("\n## ")[0]
    assert [room for room in MAY_IMPORT if room not in ("__init__", "__main__") and f"`{room}" not in text] == []
