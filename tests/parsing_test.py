"""Flags and config files, and their error messages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from nerf_tf import build
from nerf_tf.settings import parsing
from nerf_tf.settings.options import GROUPS, OPTIONS
from nerf_tf.settings.settings import Settings

CONFIGS = Path(__file__).parent.parent / "configs"

# The original's flags, written out a second time on purpose: the table in config.py must not drift.
ORIGINAL_DEFAULTS = {
    "expname": None,
    "basedir": "./logs/",
    "datadir": "./data/llff/fern",
    "netdepth": 8,
    "netwidth": 256,
    "netdepth_fine": 8,
    "netwidth_fine": 256,
    "N_rand": 4096,
    "lrate": 5e-4,
    "lrate_decay": 250,
    "chunk": 32768,
    "netchunk": 65536,
    "no_batching": False,
    "no_reload": False,
    "ft_path": None,
    "random_seed": None,
    "precrop_iters": 0,
    "precrop_frac": 0.5,
    "N_samples": 64,
    "N_importance": 0,
    "perturb": 1.0,
    "use_viewdirs": False,
    "i_embed": 0,
    "multires": 10,
    "multires_views": 4,
    "raw_noise_std": 0.0,
    "render_only": False,
    "render_test": False,
    "render_factor": 0,
    "dataset_type": "llff",
    "testskip": 8,
    "shape": "greek",
    "white_bkgd": False,
    "half_res": False,
    "factor": 8,
    "no_ndc": False,
    "lindisp": False,
    "spherify": False,
    "llffhold": 8,
    "i_print": 100,
    "i_img": 500,
    "i_weights": 10000,
    "i_testset": 50000,
    "i_video": 50000,
}
NEW_DEFAULTS = {
    "N_iters": 1000000,
    "near": None,
    "far": None,
    "save_arrays": False,
    "render_path_file": None,
    "eval_only": False,
    "eval_folder": None,
    "render_path": "auto",
    "render_frames": None,
    "render_width": None,
    "fps": 30,
    "max_bad_steps": 20,
    "on_collapse": "warn",
    "deterministic": False,
    "memory_budget_mb": None,
    "mixed_precision": "float32",
    "jit_compile": "auto",
    "distribute": "none",
    "occupancy": False,
    "field": "mlp",
    "train_minutes": None,
    "grid_lrate": 2e-2,
    "grid_slots": 8192,
    "grid_samples": 128,
    "grid_levels": 8,
    "grid_features": 4,
    "grid_log2_table": 18,
    "grid_finest": 512,
}
CONFIG_VALUES = {
    "fern.txt": {
        "expname": "fern_test",
        "basedir": "./logs",
        "datadir": "./data/nerf_llff_data/fern",
        "dataset_type": "llff",
        "factor": 8,
        "llffhold": 8,
        "N_rand": 1024,
        "N_importance": 64,
        "use_viewdirs": True,
        "raw_noise_std": 1.0,
    },
    "lego.txt": {
        "expname": "lego_test",
        "basedir": "./logs",
        "datadir": "./data/nerf_synthetic/lego",
        "dataset_type": "blender",
        "half_res": True,
        "no_batching": True,
        "N_rand": 1024,
        "N_importance": 64,
        "use_viewdirs": True,
        "white_bkgd": True,
    },
    "deepvoxels_greek.txt": {
        "expname": "dvox_greek_test",
        "basedir": "./logs",
        "dataset_type": "deepvoxels",
        "shape": "greek",
        "no_batching": True,
        "N_rand": 1024,
        "N_importance": 64,
        "use_viewdirs": True,
        "white_bkgd": True,
    },
    "paper/blender.txt": {
        "expname": "blender_paper_lego",
        "basedir": "./logs",
        "datadir": "./data/nerf_synthetic/lego",
        "dataset_type": "blender",
        "no_batching": True,
        "use_viewdirs": True,
        "white_bkgd": True,
        "lrate_decay": 500,
        "N_rand": 1024,
        "N_importance": 128,
    },
    "paper/llff.txt": {
        "expname": "llff_paper_fern",
        "basedir": "./logs",
        "datadir": "./data/nerf_llff_data/fern",
        "dataset_type": "llff",
        "factor": 4,
        "llffhold": 8,
        "use_viewdirs": True,
        "lrate_decay": 250,
        "raw_noise_std": 1.0,
        "N_rand": 4096,
        "N_importance": 128,
    },
    "paper/deepvoxels.txt": {
        "expname": "dvox_paper_cube",
        "basedir": "./logs",
        "datadir": "./data/deepvoxels",
        "dataset_type": "deepvoxels",
        "shape": "cube",
        "no_batching": True,
        "use_viewdirs": True,
        "white_bkgd": True,
        "lrate_decay": 200,
        "N_rand": 4096,
        "N_importance": 128,
    },
}


def parse(*arguments: object) -> Settings:
    """Settings of a command line."""
    return parsing.parse_settings(list(map(str, arguments)))


def values(settings: Settings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in OPTIONS if name != "config"}


def refusal(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The one line that a wrong command line is answered with."""
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("nerf_tf: ")
    assert "Traceback" not in captured.err
    return captured.err


@pytest.fixture
def write(tmp_path):
    def write_config(text: str, name: str = "some.txt") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_config


def test_all_of_the_originals_flags_with_their_defaults_and_types():
    found = values(parse("--expname=a"))
    assert len(ORIGINAL_DEFAULTS) == 44
    assert found == ORIGINAL_DEFAULTS | NEW_DEFAULTS | {"expname": "a"}
    types = {name: type(value) for name, value in ORIGINAL_DEFAULTS.items() if value is not None}
    assert {name: OPTIONS[name].kind for name in types} == types
    assert OPTIONS["random_seed"].kind is int


def test_defining_twice_is_harmless():
    flag_values = flags.FlagValues()
    parsing.define_flags(flag_values)
    parsing.define_flags(flag_values)
    assert flag_values["N_rand"].default == 4096


@pytest.mark.parametrize("name", CONFIG_VALUES)
def test_config_files_hold_the_originals_values(name):
    found = values(parse("--config", CONFIGS / name))
    assert found == ORIGINAL_DEFAULTS | NEW_DEFAULTS | CONFIG_VALUES[name]


def test_every_config_file_parses():
    files = sorted(CONFIGS.rglob("*.txt"))
    assert {str(file.relative_to(CONFIGS)) for file in files} >= set(CONFIG_VALUES)
    for file in files:
        assert values(parse("--config", file))["expname"]


@pytest.mark.parametrize("order", [0, 1])
def test_command_line_beats_file(order):
    arguments = ["--lrate=1e-3", "--nouse_viewdirs", "--N_rand", "5", "--raw_noise_std=0"]
    file = [f"--config={CONFIGS / 'fern.txt'}"]
    found = parse(*(file + arguments if order else arguments + file))
    assert (found.lrate, found.use_viewdirs, found.N_rand, found.raw_noise_std) == (1e-3, False, 5, 0.0)
    assert found.N_importance == 64


def test_command_line_beats_file_even_with_the_default_or_none(write):
    file = write("expname = a\nlrate = 1\nft_path = model_000001.npy\nrandom_seed = 4\n")
    found = parse("--config", file, "--lrate=5e-4", "--ft_path=None", "--random_seed", "None")
    assert (found.lrate, found.ft_path, found.random_seed) == (5e-4, None, None)


def test_file_syntax(write):
    file = write(
        "# comment\n; comment\n---\n[section]\n\nexpname: a b  # comment\nhalf_res\n--spherify = YES\nlindisp=off\n"
        "no_ndc = true\nwhite_bkgd = False\ndatadir = 'x #1'\nlrate 1e-2\nft_path = None\nrandom_seed = None\n"
        "N_rand = 3\nN_rand = 4\n"
    )
    found = parse("--config", file)
    assert (found.expname, found.datadir, found.lrate, found.N_rand) == ("a b", "x #1", 1e-2, 4)
    assert (found.half_res, found.spherify, found.lindisp, found.no_ndc, found.white_bkgd) == (
        *(True, True, False, True, False),
    )
    assert found.ft_path is None
    assert found.random_seed is None


def test_i_embed_may_be_negative():
    assert parse("--expname=a", "--i_embed", "-1").i_embed == -1


def test_chunk_and_netchunk_are_numbers_or_auto(write):
    found = parse("--config", write("expname = a\nchunk = auto\nnetchunk = 4096\n"), "--memory_budget_mb=8000")
    assert (found.chunk, found.netchunk, found.memory_budget_mb) == ("auto", 4096, 8000)
    # Until there is a plan, settings hold the default.
    assert build.render_settings(found, ndc=False).chunk == 32768
    assert build.render_settings(parse("--expname=a", "--chunk=7"), ndc=False).chunk == 7


def test_args_text_gives_the_same_flags_back(write):
    first = parse(
        "--config",
        CONFIGS / "fern.txt",
        "--near=0.1",
        "--chunk=auto",
        "--lrate=1.2345678901234567e-4",
        "--datadir=a #b;'c",
    )
    text = parsing.args_text(first)
    lines = text.splitlines()
    assert lines == sorted(lines, key=lambda line: line.split(" = ")[0])
    assert len(lines) == len(OPTIONS)
    assert {"use_viewdirs = True", "ft_path = None", "half_res = False", f"config = {CONFIGS / 'fern.txt'}"} <= set(
        lines
    )
    again = parse("--config", write(text, "args.txt"))
    assert values(again) == values(first)
    assert parsing.args_text(again) == text.replace(str(CONFIGS / "fern.txt"), again.config)


def test_config_text_is_the_files(write):
    assert parsing.config_text(parse("--expname=a")) is None
    file = write("expname = a # that\n")
    assert parsing.config_text(parse("--config", file)) == "expname = a # that\n"


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("N_rnd = 4", ["unknown key 'N_rnd'", "did you mean N_rand"]),
        ("n_RAND = 4", ["unknown key 'n_RAND'", "did you mean N_rand"]),
        ("qqqqqq = 4", ["unknown key 'qqqqqq'", "--help"]),
        ("verbosity = 1", ["unknown key 'verbosity'"]),
        ("N_rand = many", ["N_rand = many", "expected a whole number >= 1"]),
        ("N_rand = None", ["N_rand = None", "expected a whole number >= 1"]),
        ("N_rand = [1, 2]", ["N_rand is a list"]),
        ("half_res = [True]", ["half_res is a list", "True or False"]),
        ("half_res = maybe", ["half_res = maybe", "expected True or False"]),
        ("lrate =", ["lrate =", "expected a number > 0"]),
        ("dataset_type = llf", ["dataset_type = llf", "expected one of llff, blender, deepvoxels, transforms"]),
        ("=3", ["=3"]),
    ],
)
def test_wrong_files(capsys, write, line, parts):
    file = write(f"expname = a\n{line}\n")
    message = refusal(capsys, "--config", file)
    for part in [str(file), *parts]:
        assert part in message


def test_a_file_is_checked_even_where_the_command_line_beats_it(capsys, write):
    assert "N_rand = many" in refusal(capsys, "--config", write("N_rand = many"), "--expname=a", "--N_rand=1")


def test_files_that_cannot_be_read(capsys, tmp_path):
    assert "nowhere.txt: no such file; --config" in refusal(capsys, "--config", tmp_path / "nowhere.txt")
    assert "is a folder, not a file" in refusal(capsys, "--config", tmp_path)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    assert "binary.txt: not a text file" in refusal(capsys, "--config", tmp_path / "binary.txt")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--N_imprtance=4"], ["unknown flag --N_imprtance", "did you mean --N_importance"]),
        (["--qqqqqq"], ["unknown flag --qqqqqq", "--help"]),
        (["--use_viewdirs", "True"], ["'True'", "write --use_viewdirs or --use_viewdirs=True"]),
        (["--lrate", "1", "2"], ["stray word '2'"]),
        (["--use_viewdirs=perhaps"], ["--use_viewdirs=perhaps", "expected True or False"]),
        (["--nouse_viewdirs=True"], ["--nouse_viewdirs=True"]),
        (["--datadir", "--lrate=1"], ["--datadir has no value"]),
        (["--datadir="], ["--datadir has no value"]),
        (["--chunk"], ["--chunk"]),
        (["--expname=a/b"], ["--expname=a/b", "--basedir"]),
        (["--datadir=a\nb"], ["--datadir=a b", "line breaks"]),
        (["--datadir=[x]"], ["--datadir=[x]", "args.txt"]),
        (["--N_samples=2", "--N_importance=4"], ["--N_samples=2", "--N_importance"]),
        (["--near=2", "--far=1.5"], ["--near=2.0", "--far=1.5"]),
        (["--shape=round"], ["--shape=round", "armchair, cube, greek, vase"]),
        (["--i_embed=1"], ["--i_embed=1", "0, -1"]),
        (["--netchunk=automatic"], ["--netchunk=automatic", "a whole number >= 1 or auto"]),
        (["--N_rand=auto"], ["--N_rand=auto", "a whole number"]),
        (["--mixed_precision=half"], ["--mixed_precision=half", "float32, tf32, bfloat16, float16"]),
        (["--jit_compile=yes"], ["--jit_compile=yes", "auto, true, false"]),
    ],
)
def test_wrong_command_lines(capsys, arguments, parts):
    message = refusal(capsys, "--expname=a", *arguments)
    for part in parts:
        assert part in message


AT_LEAST_0 = ("N_importance", "precrop_iters", "lrate_decay", "multires", "multires_views", "perturb", "raw_noise_std")
AT_LEAST_0 += (
    "i_print",
    "i_img",
    "i_weights",
    "i_testset",
    "i_video",
    "llffhold",
    "factor",
    "testskip",
    "render_factor",
)
AT_LEAST_0 += ("near", "random_seed")
MORE_THAN_0 = (
    "N_rand",
    "chunk",
    "netchunk",
    "netdepth",
    "netdepth_fine",
    "precrop_frac",
    "lrate",
    "N_iters",
    "far",
    "fps",
    "render_width",
    "memory_budget_mb",
)
OUT_OF_RANGE = (
    *(f"{name}=-1" for name in AT_LEAST_0),
    *(f"{name}=0" for name in MORE_THAN_0),
    *("N_samples=1", "render_frames=1", "netwidth=1", "netwidth_fine=1", "precrop_frac=1.5", "random_seed=4294967296"),
    *("lrate=nan", "lrate=inf", "N_rand=1e3", "N_rand=None"),
)


@pytest.mark.parametrize(
    "argument",
    OUT_OF_RANGE,
)
def test_values_out_of_range(capsys, argument):
    message = refusal(capsys, "--expname=a", f"--{argument}")
    assert f"--{argument}: expected" in message


@pytest.mark.parametrize(
    "argument", ["i_print=0", "i_video=0", "llffhold=0", "testskip=0", "lrate_decay=0", "multires=0"]
)
def test_zeros_that_mean_something(argument):
    name, _ = argument.split("=")
    assert getattr(parse("--expname=a", f"--{argument}"), name) == 0


def test_a_run_needs_a_name(capsys, write):
    assert "--expname is missing" in refusal(capsys)
    assert "--expname is missing" in refusal(capsys, "--config", write("lrate = 1"))
    assert "--expname is missing" in refusal(capsys, "--expname=None")


@pytest.mark.parametrize("word", ["--help", "-h", "-help", "--helpfull"])
def test_help_lists_every_flag_in_its_group(capsys, word):
    flag_values = flags.FlagValues()
    flags.DEFINE_string("log_somewhere", "there", "one of absl's own", flag_values=flag_values)
    with pytest.raises(SystemExit) as stopped:
        parsing.parse_flags(["prog", "--lrate=wrong", word], flag_values)
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines()[1:] if line.startswith("  --") or re.fullmatch(r"[a-z'-].*:", line)]
    titles = [line.strip().split(" " if line.startswith(" ") else ":")[0] for line in lines]
    expected = [title for group, options in GROUPS.items() for title in (group, *(f"--{o.name}" for o in options))]
    assert titles[: len(expected)] == expected
    assert "rays in a training step (default: 4096)" in text
    assert "--dataset_type llff|blender|deepvoxels|transforms" in text
    assert "--netchunk INT|auto" in text
    assert ("--log_somewhere" in text) == (word == "--helpfull")


def test_the_readme_lists_every_flag_in_its_group():
    text = (CONFIGS.parent / "README.md").read_text(encoding="utf-8")
    table = text.partition("| group | flags |")[2].partition("\n\n")[0].splitlines()[2:]
    groups = [
        (group, re.findall(r"`(\w+)`", names)) for group, names in (row.strip("| ").split(" | ") for row in table)
    ]
    assert [group for group, _ in groups] == list(parsing.GROUPS)
    for group, names in groups:
        assert sorted(names) == sorted(option.name for option in parsing.GROUPS[group]), group


def test_absls_own_flags_stay_on_the_command_line_and_out_of_args_txt():
    flag_values = flags.FlagValues()
    flags.DEFINE_string("log_somewhere", "there", "one of absl's own", flag_values=flag_values)
    parsing.parse_flags(["prog", "--expname=a", "--log_somewhere=here"], flag_values)
    assert flag_values.log_somewhere == "here"
    assert "log_somewhere" not in parsing.args_text(parsing.read_settings(flag_values))


def test_importing_config_does_not_import_tensorflow():
    code = "import sys, nerf_tf.settings.parsing; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CONFIGS.parent, check=False).returncode == 0


def test_as_absls_flags_parser():
    code = (
        "from absl import app; from nerf_tf.settings import parsing; app.run(print, flags_parser=parsing.parse_flags)"
    )

    def run(*arguments):
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, cwd=CONFIGS.parent, capture_output=True, text=True, check=False)

    assert run("--expname=a", "--verbosity=1").stdout == "['-c']\n"
    wrong = run("--use_viewdirs", "True")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert run("--help").stdout.startswith("usage: python -m nerf_tf")
