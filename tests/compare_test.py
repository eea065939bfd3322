"""tools/compare.py: the table of several runs and the paper."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

QUICK = {"N_samples": 64, "N_importance": 64, "mixed_precision": "bfloat16", "occupancy": True}


@pytest.fixture
def compare(tool) -> ModuleType:
    return tool("compare")


def write_run(folder: Path, scene: str, psnr: float, kind: str = "blender", **more: object) -> Path:
    folder.mkdir(parents=True)
    metrics = {"scene": scene, "dataset_type": kind, "step": 1000, "views": 25, "height": 300, "width": 400}
    metrics |= {"seconds_per_view": 1.25, "psnr_8bit": {"mean": psnr, "views": [psnr]}}
    (folder / "metrics.json").write_text(json.dumps(metrics | more))
    return folder


def test_runs_of_a_scene_stand_together_and_the_paper_below_them(compare, tmp_path, capsys):
    runs = [
        write_run(tmp_path / "lego_a", "lego", 30.126, ssim={"mean": 0.9511, "views": [0.9511]}),
        write_run(tmp_path / "toys", "toys", 27.0, seconds_per_view=None, rendered_with=QUICK),
        write_run(tmp_path / "lego_b", "lego", 31.0, lpips={"mean": 0.0501, "views": [0.0501]}),
        write_run(tmp_path / "fern", "fern", 25.0, kind="llff"),
    ]
    assert compare.main([*map(str, runs), "--out", str(tmp_path / "table.json")]) == 0
    headings, *lines = capsys.readouterr().out.splitlines()
    assert " ".join(headings.split()) == "run scene step views size PSNR float PSNR SSIM LPIPS s/view"
    assert [line.split() for line in lines] == [
        ["lego_a", "lego", "1000", "25", "400x300", "30.13", "0.951", "1.25"],
        ["lego_b", "lego", "1000", "25", "400x300", "31.00", "0.050", "1.25"],
        ["paper", "lego", "200", "800x800", "32.54", "0.961"],
        ["toys", "(bfloat16,", "occupancy)", "toys", "1000", "25", "400x300", "27.00"],
        ["fern", "fern", "1000", "25", "400x300", "25.00", "1.25"],
        ["paper", "fern", "1008x756", "25.17", "0.792"],
    ]
    assert len({line.rindex("1.25") for line in lines if "1.25" in line}) == 1  # columns
    table = json.loads((tmp_path / "table.json").read_text())
    assert [row["PSNR"] for row in table] == [30.126, 31.0, 32.54, 27.0, 25.0, 25.17]
    assert [row["LPIPS"] for row in table] == [None, 0.0501, None, None, None, None]


def test_a_scene_of_the_same_name_but_another_kind_is_not_the_papers(compare, tmp_path, capsys):
    assert compare.main([str(write_run(tmp_path / "room", "room", 20.0, kind="blender"))]) == 0
    assert "paper" not in capsys.readouterr().out


def test_markdown(compare, tmp_path):
    run = write_run(tmp_path / "run", "lego", 30.0)
    assert compare.main([str(run), "--out", str(tmp_path / "table.md")]) == 0
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0] == "| run | scene | step | views | size | PSNR | float PSNR | SSIM | LPIPS | s/view |"
    assert lines[1].count("---") == 10
    assert lines[3] == "| paper | lego |  | 200 | 800x800 | 32.54 |  | 0.961 |  |  |"


def test_runs_of_one_name_are_told_apart(compare, tmp_path, capsys):
    runs = [write_run(tmp_path / basedir / "lego", "lego", 30.0) for basedir in "ab"]
    assert compare.main([*map(str, runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [*map(str, runs), "paper"]


def test_the_papers_means_are_those_of_its_tables(compare):
    """The paper's own averages over the eight scenes: table 1."""
    for kind, psnr, ssim in (("blender", 31.01, 0.947), ("llff", 26.50, 0.811)):
        scenes = [figures for (of_kind, _), figures in compare.PAPER.items() if of_kind == kind]
        assert len(scenes) == 8
        means = [sum(column) / 8 for column in zip(*scenes, strict=True)]
        assert means == [pytest.approx(psnr, abs=0.0051), pytest.approx(ssim, abs=0.00051)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "metrics.json: no such file; .*--eval_only"),
        ("{", "metrics.json: not valid JSON"),
        ("[" * 10**5, "metrics.json: not valid JSON"),
        ('{"step": 1' + "0" * 5000 + "}", "metrics.json: not valid JSON"),
        (
            '{"psnr_8bit": {"mean": 1' + "0" * 400 + "}}",
            "its psnr_8bit is 10+\\.\\.\\.0+, which is not a number",
        ),
        (" " * 2**22 + "{}", "metrics.json: longer than 4194304 characters"),
        ("[]", "holds no PSNR"),
        ('{"psnr_8bit": {"mean": "high"}}', "holds no PSNR"),
        ('{"psnr_8bit": {"mean": 1.0}, "scene": []}', r"its scene is \[\]"),
        ('{"psnr_8bit": {"mean": 1.0}, "seconds_per_view": "long"}', "its seconds_per_view is 'long'"),
    ],
)
def test_what_is_no_evaluation_is_one_line(compare, tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    assert compare.main([str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert re.fullmatch(f"compare: .*{message}.*\n", captured.err)
    assert captured.out == ""


def test_a_name_cannot_steer_the_terminal(compare, tmp_path, capsys):
    assert compare.main([str(write_run(tmp_path / "run", "\x1b[2Jlego\n", 30.0))]) == 0
    assert "\\x1b[2Jlego" in capsys.readouterr().out


def test_an_ending_that_says_nothing_is_refused_before_anything_is_printed(compare, tmp_path, capsys):
    run = write_run(tmp_path / "run", "lego", 30.0)
    with pytest.raises(SystemExit) as stop:
        compare.main([str(run), "--out", str(tmp_path / "table.txt")])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert "must end in .md or .json" in captured.err
    assert captured.out == ""
