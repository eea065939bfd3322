"""The package from Python: public names, and the code in README.md and docs/library.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from app_test import BLENDER, SCENES
from PIL import Image

import nerf_tf
from nerf_tf import build
from nerf_tf.settings import parsing
from nerf_tf.storage import tf1_weights

ROOT = Path(__file__).parent.parent


def python_in(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_public_names_are_there_and_documented():
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    for name in set(nerf_tf.__all__) - {"__version__"}:
        assert getattr(nerf_tf, name).__doc__
        assert f"| `{name}" in page
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        nerf_tf.nothing  # noqa: B018


def test_importing_the_package_does_not_import_tensorflow():
    code = "import sys, nerf_tf; nerf_tf.Settings(); sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_readmes_lines_render_a_view(here):
    (here / "data" / "nerf_synthetic").mkdir(parents=True)
    (here / "data" / "nerf_synthetic" / "lego").symlink_to(SCENES / "blender")
    fields = nerf_tf.build_fields(nerf_tf.read_config(CONFIG))
    for name, field in zip(("model_200000.npy", "model_fine_200000.npy"), fields, strict=True):
        tf1_weights.save(here / name, field.mlp.get_weights())
    (lines,) = python_in("README.md")
    assert len(lines.splitlines()) <= 10
    found = {}
    exec(lines, found)
    assert found["renderer"].fine.mlp.get_weights()[0].tolist() == fields[1].mlp.get_weights()[0].tolist()
    expected = np.floor(255 * found["image"].rgb.clip(0, 1))
    np.testing.assert_array_equal(np.asarray(Image.open(here / "view.png")), expected)
    assert {path.name for path in here.iterdir()} == {"data", "model_200000.npy", "model_fine_200000.npy", "view.png"}


CONFIG = "configs/lego.txt"


def test_configs_are_found_from_anywhere(here):
    assert nerf_tf.read_config(CONFIG).N_importance == 64
    assert parsing.parse_settings(["--config=configs/paper/llff.txt"]).factor == 4
    (here / "configs").mkdir()
    (here / "configs" / "lego.txt").write_text("N_importance = 5")
    assert nerf_tf.read_config(CONFIG).N_importance == 5


def test_every_room_and_config_folder_is_installed():
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    listed = set(re.findall(r"^    (nerf_tf[\w.]*)$", text, re.MULTILINE))
    rooms = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "nerf_tf").rglob("*.py")}
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.txt")}
    assert listed == rooms | {".".join(("nerf_tf", *folder.parts)) for folder in folders}


def test_the_library_pages_lines_run(here, capsys):
    flags_of_run = ["--expname=demo", "--basedir=logs", "--N_iters=1", "--i_weights=1", "--N_importance=0"]
    settings = parsing.parse_settings([*BLENDER, *flags_of_run])
    assert nerf_tf.train_scene(settings) == Path("logs/demo")
    for lines in python_in("docs/library.md"):
        exec(lines, {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "(5, 5, 3) (5, 5) (5, 5) (5, 5)"
    assert printed[1].startswith("(4, 3) ")
    assert printed[2] == "logs/again"
    assert (here / "logs" / "again" / "model_000001.npy").exists()


def test_mistakes_are_exceptions_with_one_line(here):
    with pytest.raises(ValueError, match=r"--N_rand=0: expected a whole number >= 1"):
        nerf_tf.Settings(N_rand=0)
    with pytest.raises(ValueError, match=r"--lrate=fast: expected a number > 0"):
        nerf_tf.Settings(lrate="fast")
    with pytest.raises(TypeError):
        nerf_tf.Settings(no_such_flag=1)
    with pytest.raises(ValueError, match="expname is missing"):
        nerf_tf.train_scene(nerf_tf.Settings())
    with pytest.raises(ValueError, match="no such folder; --datadir"):
        nerf_tf.train_scene(nerf_tf.Settings(expname="x", datadir="nowhere"))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        nerf_tf.load_scene(nerf_tf.Settings(datadir="nowhere"))


def test_settings_are_frozen_and_equal_by_value():
    settings = nerf_tf.Settings(expname="a")
    with pytest.raises(AttributeError):
        settings.expname = "b"
    assert settings.replace(lrate=1e-3).lrate == 1e-3
    assert settings == parsing.parse_settings(["--expname=a"])
    assert build.field_settings(settings, fine=True).depth == 8


def test_a_hash_grid_without_a_scene_is_refused():
    with pytest.raises(ValueError, match="a hash grid lies where its scene is; use train_scene"):
        nerf_tf.build_fields(nerf_tf.Settings(field="hash_grid"))
