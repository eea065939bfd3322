"""From photos to a video: stages that are skipped, continue or begin anew; and all of them together on a tiny scene."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from app_test import run
from PIL import Image

from nerf_tf import build
from nerf_tf.data import llff
from nerf_tf.geometry import paths
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.output import view_files
from nerf_tf.render import renderer
from nerf_tf.settings import parsing
from nerf_tf.storage import atomic, llff_files

ROOT = Path(__file__).parent.parent
TINY = (
    "--N_iters=3 --grid_slots=1024 --grid_samples=16 --grid_levels=2 --grid_log2_table=8 --grid_finest=16 --N_rand=64"
)


@pytest.fixture
def stages(tool, tmp_path):
    """Makes `Stages` anew, as the next call of a program does."""
    return lambda: tool("support.stages").Stages(tmp_path / "out", ("first", "second"))


def writes(path: Path, text: str, calls: list[str]) -> Callable[[], None]:
    def action() -> None:
        calls.append(path.name)
        path.write_text(text)

    return action


def test_a_finished_stage_is_skipped_until_its_inputs_change(stages, tmp_path, capsys):
    out, calls = tmp_path / "out", []

    def both(first: int, second: int, minutes: int = 3) -> None:
        calls.clear()
        job = stages()
        job.run("first", {"a": first}, ["one"], writes(out / "one", f"{first}", calls))
        job.run("second", {"b": second}, ["two"], writes(out / "two", f"{second}", calls), {"minutes": minutes})

    both(1, 1)
    assert calls == ["one", "two"]
    both(1, 1)
    assert calls == []
    assert "1/2 first: finished before, in 0 s" in capsys.readouterr().out
    both(1, 2)
    assert calls == ["two"]
    assert (out / "earlier_1" / "two").read_text() == "1"
    assert "2/2 second: its inputs have changed; what was made of the others is in " in capsys.readouterr().out
    both(3, 2)  # the second stage depends on the first
    assert calls == ["one", "two"]
    assert {path.name for path in (out / "earlier_2").iterdir()} == {"one", "two"}
    both(3, 2, minutes=5)  # continues
    assert calls == ["two"]
    assert not (out / "earlier_3").exists()
    (out / "one").unlink()
    both(3, 2, minutes=5)
    assert calls == ["one"]


def test_a_stage_that_was_stopped_goes_on(stages, tmp_path):
    out, calls = tmp_path / "out", []

    def stopped() -> None:
        (out / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages().run("first", {"a": 1}, ["half"], stopped)
    stages().run("first", {"a": 1}, ["half"], lambda: calls.append((out / "half").read_text()))
    assert calls == ["half"]
    with pytest.raises(KeyboardInterrupt):
        stages().run("first", {"a": 2}, ["half"], stopped)
    assert (out / "earlier_1" / "half").read_text() == "half"


def test_a_record_that_is_none(stages, tmp_path):
    stages()
    (tmp_path / "out" / "stages.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"stages\.json: not the record of this program; delete it"):
        stages()


def llff_scene(folder: Path, poses: np.ndarray, size: tuple[int, int] = (36, 48)) -> Path:
    (folder / "images").mkdir(parents=True)
    hwf = np.tile([[size[0]], [size[1]], [0.9 * size[1]]], (len(poses), 1, 1))
    rows = np.concatenate([pose_maths.opengl_to_llff(poses), hwf], axis=-1).reshape(len(poses), 15)
    np.save(folder / "poses_bounds.npy", np.concatenate([rows, np.tile([2.0, 9.0], (len(poses), 1))], axis=-1))
    Image.new("RGB", size[::-1]).save(folder / "images" / "000.png")
    return folder


def test_the_poses_tell_which_kind_of_scene_it_is(tool, tmp_path, capsys):
    program = tool("from_photos")
    around = np.stack([paths.spherical_pose(30.0 * i, -20.0, 4.0) for i in range(12)])
    outwards = around * np.array([-1.0, 1, -1, 0.1])
    outwards[:, :, 3] += 0.3 * np.random.default_rng(0).normal(size=(12, 3))
    scenes = {name: llff_scene(tmp_path / name, poses) for name, poses in (("a", around), ("o", outwards))}
    front = ROOT / "tests" / "data" / "portable" / "scenes" / "llff"
    assert program.choose_kind(front, "auto") == ("ndc", [])
    assert program.choose_kind(scenes["a"], "auto") == ("360", [])
    assert program.choose_kind(scenes["o"], "auto") == ("360", ["--render_path=test"])
    assert "against the poses" not in capsys.readouterr().out
    assert program.choose_kind(scenes["a"], "ndc") == ("ndc", [])
    assert "NDC (as --kind says, against the poses); configs/fast/fern.txt" in capsys.readouterr().out
    (scenes["a"] / "poses_bounds.npy").unlink()
    for kind in ("auto", "360"):
        assert program.choose_kind(scenes["a"], kind) == ("transforms", [])
        assert "no poses_bounds.npy: transforms.json, contracted space; configs/fast/360" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no such file, as .*imgs2poses.txt explains; leave out --kind"):
        program.choose_kind(scenes["a"], "ndc")


@pytest.mark.parametrize(("longer", "factor"), [(504, 1), (1280, 3), (1920, 4), (4032, 8)])
def test_photos_are_trained_on_at_about_500_pixels(tool, tmp_path, longer, factor):
    scene = llff_scene(tmp_path / "scene", np.eye(4)[None, :3], (longer, 8))
    assert tool("from_photos").choose_factor(scene) == factor


def test_what_most_photos_have_counts(tool, tmp_path):
    """A portrait that comes first does not make the video of landscapes narrow."""
    scene = llff_scene(tmp_path / "scene", np.eye(4)[None, :3], (1920, 1080))
    for name in ("001.png", "002.png"):
        Image.new("RGB", (1280, 720)).save(scene / "images" / name)
    assert tool("from_photos").choose_factor(scene) == 3
    assert "--render_width=378" in tool("from_photos").choose_video(scene, [])


def test_the_video_is_small_unless_told_otherwise(tool, tmp_path):
    scene = llff_scene(tmp_path / "scene", np.eye(4)[None, :3], (360, 640))
    choose = tool("from_photos").choose_video
    assert choose(scene, []) == ["--render_frames=60", "--fps=20", "--render_width=378"]
    assert choose(scene, ["--fps=25"]) == ["--render_frames=60", "--render_width=378"]
    assert choose(scene, ["--render_frames=240"]) == ["--render_width=378"]
    assert choose(scene, ["--render_factor=2", "--render_path_file=a.json"]) == []
    tiny = llff_scene(tmp_path / "tiny", np.eye(4)[None, :3], (36, 48))
    assert choose(tiny, [])[-1] == "--render_width=48"


def test_flags_of_the_program_count_for_training_or_for_the_video(tool, tmp_path):
    flags = tool("from_photos").program_flags
    training, video = flags(["--N_rand", "512", "--render_width=640", "--use_viewdirs=False", "--fps=10"])
    assert training == ["--N_rand=512", "--use_viewdirs=False"]
    assert video == ["--fps=10", "--render_width=640"]
    for name, instead in (("no_ndc", "--kind"), ("train_minutes=3", "--minutes"), ("datadir=x", "leave it out")):
        with pytest.raises(ValueError, match=rf"--{name.partition('=')[0]} is chosen by this program; .*{instead}"):
            flags([f"--{name}"])
    with pytest.raises(SystemExit):
        flags(["--N_radn=2"])


@pytest.fixture
def photos(tmp_path) -> tuple[Path, Path]:
    """Photos, and a model of them that COLMAP might have made: cameras in a half circle around its points."""
    pytest.importorskip("pycolmap", reason="pip install -e '.[colmap]'")
    from imgs2poses_test import HEIGHT, WIDTH, names_of, synthesize

    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    (tmp_path / "sparse").mkdir()
    synthesize().write(tmp_path / "sparse")
    for name in names_of(8):
        noise = Image.fromarray(rng.integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), np.uint8))
        noise.resize((WIDTH, HEIGHT)).save(tmp_path / "photos" / name)
    return tmp_path / "photos", tmp_path / "sparse"


def pretend_to_run(words: list[str]) -> None:
    """Leaves what a run of the program leaves; its flags must be right."""
    settings = parsing.parse_settings(words)
    run = settings.folder
    if settings.training:
        atomic.write_text(run / "args.txt", parsing.args_text(settings))
        atomic.write_text(run / "model_000002.npy", "")
        return
    folder = run / f"renderonly_{'test' if settings.render_test else 'path'}_000003"
    scene = llff.load(settings.datadir, settings.factor)
    camera = build.view_camera(settings, scene.cameras[0])
    map_ = np.ones([camera.height, camera.width], np.float32)
    image = renderer.Image(np.random.default_rng(0).uniform(size=(*map_.shape, 3)), map_, map_, map_)
    count = len(scene.i_test) if settings.render_test else settings.render_frames
    frames = view_files.write_views(folder, [image] * count, settings.save_arrays)
    view_files.write_video(folder / "video.mp4", frames.rgb, settings.fps)
    if settings.render_test:
        atomic.write_text(run / "metrics.json", '{"psnr_8bit": {"mean": 18.25}}')


@pytest.fixture
def in_process(tool, monkeypatch, request):
    """Runs the programs that `from_photos` starts in this process, but pretends to train and render.

    Returns:
        The list of what it has started.
    """
    started, is_real = [], getattr(request, "param", False)

    def run_program(program: str, *words: object, output: Path | None = None) -> int:
        words = [str(word) for word in words]
        started.append([program, *words])
        if program == "nerf_tf":
            return run(*words).code if is_real else pretend_to_run(words) or 0
        code = tool(program).main(words)
        if output is not None:
            output.write_text("table")
        return code

    monkeypatch.setattr(tool("from_photos"), "run_program", run_program)
    return started


@pytest.mark.parametrize(
    "in_process", [False, pytest.param(True, marks=pytest.mark.long)], ids=["pretended", "real"], indirect=True
)
def test_from_photos_to_a_video(tool, in_process, photos, tmp_path, capsys):
    folder, sparse = photos
    out = tmp_path / "out"
    words = [str(folder), str(out), "--sparse", str(sparse), *TINY.split()]
    video = ["--render_frames=2", "--render_width=20"]
    assert tool("from_photos").main([*words, *video]) == 0, capsys.readouterr()
    programs = ["imgs2poses", "check_scene", "nerf_tf", "nerf_tf", "nerf_tf", "contact_sheet"]
    assert [program for program, *_ in in_process] == programs
    said = capsys.readouterr().out
    for name in ("video.mp4", "contact_sheet.png", "check.png"):
        assert str(out / name) in said
        assert (out / name).stat().st_size > 1000
    assert f"{sys.executable} {ROOT / 'tools' / 'viewer.py'} {out / 'run'}" in said
    score = json.loads((out / "run" / "metrics.json").read_text())["psnr_8bit"]["mean"]
    assert f"contact_sheet.png; {score:.1f} dB; all scores" in said
    assert f"from_photos: test views of {score:.1f} dB: the scene was not learnt; see whether {out}/check.png" in said
    (out / "run" / "metrics.json").write_text('{"psnr_8bit": {"mean": 24.5}}')
    assert [frame.shape for frame in imageio.mimread(out / "video.mp4")] == [(16, 20, 3)] * 2
    assert len(llff_files.read_poses_bounds(out / "scene" / "poses_bounds.npy")[0]) == 8
    settings = parsing.parse_settings(in_process[2][1:])
    assert (settings.field, settings.train_minutes, settings.factor) == ("hash_grid", 3.0, 1)
    assert (settings.no_ndc, settings.spherify, settings.grid_levels) == (True, True, 2)
    checked = tool("check_scene").parsing.parse_settings([*in_process[1][2:-2], "--expname=x"])
    assert (checked.no_ndc, checked.spherify, checked.lindisp, checked.factor) == (True, True, True, 1)

    # Again: nothing to do. A flag of the video: the video alone. A photo has changed: everything, and nothing is lost.
    in_process.clear()
    assert tool("from_photos").main([*words, *video]) == 0
    assert in_process == []
    said = capsys.readouterr().out
    assert said.count("finished before") == 5
    assert "24.5 dB" in said
    assert "not learnt" not in said

    def only_note(program: str, *words: object, output: Path | None = None) -> int:
        in_process.append([program])
        return 7

    tool("from_photos").run_program = only_note
    assert tool("from_photos").main([*words, *video, "--fps=10"]) == 7
    assert in_process == [["nerf_tf"]]
    assert (out / "earlier_1" / "video.mp4").exists()
    os.utime(folder / "photo_00.png")
    assert tool("from_photos").main(words) == 7
    assert in_process == [["nerf_tf"], ["imgs2poses"]]
    assert (out / "earlier_2" / "scene" / "poses_bounds.npy").exists()
    assert json.loads((out / "stages.json").read_text())["poses"].keys() == {"inputs", "seconds"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["none", "out"], 1, "none: no such file"),
        (["none", "out", "--minutes=0"], 2, "--minutes 0: expected a number > 0"),
        (["none", "out", "--factor=0"], 2, "--factor 0: expected a whole number >= 1"),
        (["none", "out", "--kind=sphere"], 2, "--kind: invalid choice"),
        (["none", "out", "--spherify"], 1, "--spherify is chosen by this program; give --kind ndc or --kind 360"),
        (["none"], 2, "the following arguments are required: OUT"),
    ],
)
def test_mistakes_are_one_line(tool, tmp_path, monkeypatch, capsys, words, code, said):
    monkeypatch.chdir(tmp_path)
    try:
        result = tool("from_photos").main(words)
    except SystemExit as stop:
        result = stop.code
    assert result == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("from_photos: ")
    assert said in line


def test_the_exit_code_and_the_output_of_a_program(tool, tmp_path, capsys):
    program = tool("from_photos")
    assert program.run_program("from_photos", "--help", output=tmp_path / "help.txt") == 0
    assert "--kind" in (tmp_path / "help.txt").read_text()
    assert capsys.readouterr().out == (tmp_path / "help.txt").read_text()
    assert program.run_program("from_photos") == 2
    with pytest.raises(program.StageFailed):
        program.require_success(2)


def test_the_shell_script_makes_the_environment_and_keeps_the_folder(tmp_path):
    """With a .venv that says what it is asked to run."""
    project, here = tmp_path / "a project", tmp_path / "here"
    (project / "tools" / "support").mkdir(parents=True)
    here.mkdir()
    for name in ("from_photos.sh", "support/venv.sh"):
        shutil.copy(ROOT / "tools" / name, project / "tools" / name)
    (project / "setup.cfg").write_text("")
    python = project / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$PWD|$*"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (project / ".venv" / "installed-colmap,plots,viewer").write_text("")
    words = ["bash", "../a project/tools/from_photos.sh", "my photos", "out", "--minutes", "2"]
    done = subprocess.run(words, cwd=here, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{here}|{project}/tools/from_photos.py my photos out --minutes 2\n"


def test_help_needs_nothing_installed(tmp_path):
    words = [sys.executable, "-E", "-S", str(ROOT / "tools" / "from_photos.py"), "--help"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--kind" in done.stdout


def test_the_newest_file_goes_by_its_number(tool, tmp_path):
    for step in (950000, 1000000):
        (tmp_path / f"model_{step:06d}.npy").touch()
    assert tool("from_photos").newest(tmp_path, "model_[0-9]*.npy").name == "model_1000000.npy"
