"""Runs that were renamed, copied or moved, and what --ft_path may be given by mistake."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from app_test import BLENDER, assert_one_line, files_in, run

from nerf_tf.storage.run_folder import describe_progress, require_coarse_weights

SMALL = [*BLENDER, "--i_img=0", "--i_testset=0", "--i_video=0", "--i_weights=0"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The folder of a run of 2 steps, which is called `old`."""
    basedir = tmp_path_factory.mktemp("made")
    assert run(*SMALL, f"--basedir={basedir}", "--expname=old", "--N_iters=2").code == 0
    return basedir / "old"


@pytest.fixture
def renamed(made, tmp_path) -> Path:
    """That run under another name, and the old folder gone."""
    shutil.copytree(made, tmp_path / "renamed")
    args = tmp_path / "renamed" / "args.txt"
    args.write_text(args.read_text().replace(str(made.parent), str(tmp_path / "gone")))
    return tmp_path / "renamed"


@pytest.mark.parametrize("mode", [[], ["--render_only"], ["--eval_only"], ["--basedir=HERE"]], ids=str)
def test_a_renamed_run_is_not_started_over(renamed, mode):
    before = files_in(renamed.parent)
    arguments = [word.replace("HERE", str(renamed.parent)) for word in mode]
    result = run(f"--config={renamed / 'args.txt'}", *arguments)
    assert_one_line(result, 1, rf"{renamed} holds a run of 2 steps, .*folder {renamed.parent}.*old; .*--basedir .* ")
    assert f"--basedir {renamed.parent} --expname renamed" in result.stderr
    assert files_in(renamed.parent) == before


def test_a_moved_run_is_not_started_over_under_its_own_name(made, tmp_path):
    shutil.copytree(made, tmp_path / "old")
    result = run(f"--config={tmp_path / 'old' / 'args.txt'}", "--expname=old", "--N_iters=3")
    assert_one_line(result, 1, f"holds a run of 2 steps, but the flags name the folder {made}")


def test_the_flags_that_are_named_settle_it(renamed):
    config = f"--config={renamed / 'args.txt'}"
    there = [f"--basedir={renamed.parent}", "--expname=renamed"]
    assert "continues at step 2" in run(config, *there, "--N_iters=3").stderr
    other = run(config, f"--basedir={renamed.parent}", "--expname=new", "--N_iters=1")
    assert other.code == 0
    assert f"{renamed.parent / 'new'}: this run, with the flags of the one in {renamed}" in other.stderr


def test_a_run_in_its_own_folder_just_goes_on(made, tmp_path):
    assert "at step 2 already" in run(f"--config={made / 'args.txt'}").stderr


def test_progress(made, tmp_path):
    assert describe_progress(made) == "a run of 2 steps"
    (tmp_path / "checkpoints" / "ckpt-3").mkdir(parents=True)
    assert describe_progress(tmp_path) == "a run's checkpoints"
    assert describe_progress(tmp_path / "checkpoints") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model_fine_000001.npy", "the fine network's weights; give the coarse ones, RUN/model_000001.npy"),
        ("model_000001", "no such file; give RUN/model_000001.npy"),
        (".", "a run's folder, not weights; give its newest weights, RUN/model_000001.npy, or to continue that run"),
        ("checkpoints", "a folder of checkpoints, not weights; give its newest weights, RUN/model_000001.npy"),
        ("checkpoints/ckpt-1", "a checkpoint, not weights; give its newest weights, RUN/model_000001.npy"),
        ("checkpoints/ckpt-1/state.index", "a part of a checkpoint, not weights; give its newest weights"),
        ("..", "a folder without weights; give a file such as model_200000.npy"),
    ],
)
def test_what_ft_path_may_be_given_by_mistake(made, name, message):
    path = made / name if name != ".." else made.parent
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        require_coarse_weights(path)
    assert str(error.value).startswith(f"--ft_path {path}: {message.replace('RUN', str(made))}")


def test_ft_path_is_checked_when_a_run_starts(made, tmp_path):
    result = run(*SMALL, f"--basedir={tmp_path}", "--expname=x", f"--ft_path={made / 'model_fine_000001.npy'}")
    assert_one_line(result, 1, "the fine network's weights; give the coarse ones")
    require_coarse_weights(made / "model_000001.npy")


def test_flags_without_effect_are_named_once(made, tmp_path):
    others = ["--factor=4", "--spherify", "--N_iters=1"]
    result = run(*SMALL, f"--basedir={tmp_path}", "--expname=x", *others)
    assert result.stderr.count("--factor has no effect on a blender scene") == 1
    assert result.stderr.count("--spherify has no effect on a blender scene") == 1
    assert result.stderr.count("has no effect") == 2
    again = run(f"--config={made / 'args.txt'}")
    assert "has no effect" not in again.stderr
