"""Every flag of the program, and the original's config files.

Flags live on absl's `flags.FLAGS`; `app.run(main, flags_parser=parse_flags)` reads them from the command line and from
the `key = value` file named by `--config`. The command line beats the file. Whatever is wrong with either is answered
by one line on stderr and exit code 2. TensorFlow is not imported here, so that the answer comes at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import io
import math
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import configargparse
from absl import flags

from nerf_tf import untrusted

if TYPE_CHECKING:
    from nerf_tf.data.pipeline import BatchSettings
    from nerf_tf.field.mlp import FieldSettings
    from nerf_tf.render.renderer import RenderSettings
    from nerf_tf.train.trainer import TrainSettings


@dataclasses.dataclass(frozen=True)
class Option:
    """One flag: its name, type, default, meaning, and the values that it takes.

    Attributes:
        name: as on the command line and in files.
        kind: bool, int, float or str.
        default: None means unset, and makes the word None (or nothing) a value that unsets the flag.
        help: what it means.
        low, high: smallest and largest value; `above` is a bound that is not itself allowed.
        choices: the only values allowed, if any.
        words: values allowed besides those of its type.
    """

    name: str
    kind: type
    default: bool | int | float | str | None
    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[int | str, ...] = ()
    words: tuple[str, ...] = ()

    def expected(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        words = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}[self.kind]
        bounds = ((">=", self.low), (">", self.above), ("<=", self.high))
        within = " and ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None)
        return f"{words} {within}".strip() + "".join(f" or {word}" for word in self.words)

    def parse(self, text: str) -> bool | int | float | str | None:
        """The value that a text stands for; ValueError says what was expected."""
        if self.default is None and text in ("None", ""):
            return None
        if text in self.words:
            return text
        try:
            value = _BOOLEANS[text.lower()] if self.kind is bool else self.kind(text)
        except (KeyError, ValueError):
            raise ValueError(f"expected {self.expected()}") from None
        if self.high is None and self.kind in _LARGEST and value > _LARGEST[self.kind]:
            raise ValueError(f"expected at most {_LARGEST[self.kind]:.10g}")
        within = (
            (not self.choices or value in self.choices)
            and (self.kind is not float or math.isfinite(value))
            and (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
        )
        if not within:
            raise ValueError(f"expected {self.expected()}")
        return value


# The words that configargparse, the original's parser, takes for a switch in a file, and absl's short forms.
_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1", "t"), True) | dict.fromkeys(
    ("false", "no", "off", "0", "f"), False
)

# What TensorFlow's tensors of 32 bits hold: the largest value of flags without a bound of their own.
_LARGEST = {int: 2**31 - 1, float: 3.4e38}

# Characters in a config file and in a line of it: configs/ needs 500 and 60, and long lines take the parser seconds.
_LARGEST_FILE, _LONGEST_LINE = 2**16, 2**10

_MAX_SEED = 2**32 - 1  # What numpy, and so the original, takes as a seed.

# Order and groups are those of the original's help; all but the last four groups are the original's flags.
GROUPS: dict[str, tuple[Option, ...]] = {
    "run": (
        Option("config", str, None, "file of `key = value` lines; the command line beats it"),
        Option("expname", str, None, "name of the run: a folder made in --basedir (required)"),
        Option("basedir", str, "./logs/", "folder that holds runs and their summaries"),
        Option("datadir", str, "./data/llff/fern", "folder of the scene"),
    ),
    "network": (
        Option("netdepth", int, 8, "layers of the coarse network's trunk", low=1, high=1000),
        Option("netwidth", int, 256, "units in each of them", low=2, high=2**16),
        Option("netdepth_fine", int, 8, "layers of the fine network's trunk", low=1, high=1000),
        Option("netwidth_fine", int, 256, "units in each of them", low=2, high=2**16),
    ),
    "training": (
        Option("N_rand", int, 4096, "rays in a training step", low=1),
        Option("lrate", float, 5e-4, "learning rate at step 0", above=0),
        Option("lrate_decay", int, 250, "thousands of steps in which it falls to a tenth; 0: never", low=0),
        Option("chunk", int, 32768, "rays processed at once; auto: what fits --memory_budget_mb", 1, words=("auto",)),
        Option(
            "netchunk",
            int,
            65536,
            "points sent through a network at once: what decides memory most; auto: what fits --memory_budget_mb",
            low=1,
            words=("auto",),
        ),
        Option("no_batching", bool, False, "a step takes its rays from one random image instead of from all"),
        Option("no_reload", bool, False, "start afresh, whatever weights the run's folder or --ft_path holds"),
        Option("ft_path", str, None, "coarse weights (.npy) to start from; the fine ones are found beside it by name"),
        Option("random_seed", int, None, "seed of every random draw; unset: a new one, which is logged", 0, _MAX_SEED),
    ),
    "pre-crop": (
        Option("precrop_iters", int, 0, "first steps that see only the images' centre (with --no_batching)", low=0),
        Option("precrop_frac", float, 0.5, "side of that centre, as a fraction of the image's", above=0, high=1),
    ),
    "rendering": (
        Option("N_samples", int, 64, "coarse samples on a ray", low=2, high=2**16),
        Option("N_importance", int, 0, "fine samples added on a ray; 0: no fine network", 0, 2**16),
        Option("perturb", float, 1.0, "1: samples are jittered while training; 0: they are not", low=0),
        Option("use_viewdirs", bool, False, "colour depends on the viewing direction"),
        Option("i_embed", int, 0, "0: positional encoding; -1: none", choices=(0, -1)),
        Option("multires", int, 10, "frequencies in the encoding of positions", low=0, high=64),
        Option("multires_views", int, 4, "frequencies in the encoding of viewing directions", 0, 64),
        Option("raw_noise_std", float, 0.0, "noise added to density while training; 1 is advised for photos", low=0),
        Option("render_only", bool, False, "render and stop; nothing is trained"),
        Option("render_test", bool, False, "with --render_only: the test views instead of the path"),
        Option("render_factor", int, 0, "divide the sides of rendered images by this; 0: full size", low=0),
    ),
    "data": (
        Option("dataset_type", str, "llff", "kind of scene", choices=("llff", "blender", "deepvoxels")),
        Option("testskip", int, 8, "keep every n-th test and validation image (blender, deepvoxels); 0: all", low=0),
    ),
    "deepvoxels": (Option("shape", str, "greek", "object to load", choices=("armchair", "cube", "greek", "vase")),),
    "blender": (
        Option("white_bkgd", bool, False, "put images on white where they are transparent"),
        Option("half_res", bool, False, "halve the images' sides"),
    ),
    "llff": (
        Option("factor", int, 8, "divide the images' sides by this; 0 or 1: full size", low=0),
        Option("no_ndc", bool, False, "no normalised device coordinates: for scenes that do not face forward"),
        Option("lindisp", bool, False, "space samples evenly in disparity (1/depth) rather than in depth"),
        Option("spherify", bool, False, "the cameras surround the scene (360 degrees)"),
        Option("llffhold", int, 8, "every n-th image is a test image; 0: only the most central one", low=0),
    ),
    "logging": (
        Option("i_print", int, 100, "steps between progress lines and TensorBoard scalars; 0: never", low=0),
        Option("i_img", int, 500, "steps between TensorBoard images; 0: never", low=0),
        Option("i_weights", int, 10000, "steps between saved weights; 0: never", low=0),
        Option("i_testset", int, 50000, "steps between renderings of the test views; 0: never", low=0),
        Option("i_video", int, 50000, "steps between videos of the path; 0: never", low=0),
    ),
    "engine (new here)": (
        Option(
            "memory_budget_mb",
            int,
            None,
            "memory to plan for, in MB (10^6 bytes): what auto fits, and what given values are checked against; unset: "
            "auto takes most of what is free",
            low=1,
        ),
        Option(
            "mixed_precision",
            str,
            "float32",
            "what networks compute in; weights, rays and compositing stay float32. float16 scales the loss",
            choices=("float32", "bfloat16", "float16"),
        ),
        Option(
            "jit_compile",
            str,
            "auto",
            "whether XLA compiles what happens within a netchunk; auto: on a GPU only, it is slower on a CPU",
            choices=("auto", "true", "false"),
        ),
        Option("occupancy", bool, False, "render faster: skip empty space, and what a surface hides"),
    ),
    "training that goes wrong (new here)": (
        Option(
            "max_bad_steps",
            int,
            20,
            "training stops after so many steps in a row without finite loss and gradient (they are skipped); 0: never",
            low=0,
        ),
        Option(
            "on_collapse",
            str,
            "warn",
            "when the scene collapses to empty space or a solid block: say so, stop, or start over with another seed",
            choices=("warn", "stop", "restart"),
        ),
        Option("deterministic", bool, False, "only operations that give the same bits each time, or an error"),
    ),
    "paths (new here)": (
        Option(
            "render_path_file",
            str,
            None,
            "the path to render: camera-to-world poses (npy, [M,3,4] or [M,4,4]), or keyframes (json) to go between",
        ),
        Option(
            "render_path",
            str,
            "auto",
            "the path to render; auto: the scene's own; test: from one test view to the next",
            choices=("auto", "orbit", "spiral", "test"),
        ),
        Option("render_frames", int, None, "frames of that path; unset: as many as it has, or 120", low=2),
        Option("fps", int, 30, "frames per second of videos", low=1, high=1000),
    ),
    "new here": (
        Option("N_iters", int, 1000000, "training stops after this many steps", low=1),
        Option("near", float, None, "start of the rays' range, instead of the scene's own", low=0),
        Option("far", float, None, "end of the rays' range, instead of the scene's own", above=0),
        Option("save_arrays", bool, False, "also write float rgb, disp, acc, depth of every rendered view (npz)"),
        Option("eval_only", bool, False, "compare the test views at full size with their photos, and stop"),
        Option("eval_folder", str, None, "with --eval_only: the views NNN.png in this folder; nothing is rendered"),
    ),
}
OPTIONS: dict[str, Option] = {option.name: option for group in GROUPS.values() for option in group}


class _Parser(flags.ArgumentParser):
    """An option as absl sees it."""

    def __init__(self, option: Option) -> None:
        self._option = option
        self.syntactic_help = option.expected()

    def parse(self, argument: object) -> object:
        return self._option.parse(str(argument))

    def flag_type(self) -> str:
        return self._option.kind.__name__


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines all flags on `flag_values`; does nothing where they are defined already."""
    for option in OPTIONS.values():
        if option.name not in flag_values:
            flag = flags.Flag(
                _Parser(option),
                flags.ArgumentSerializer(),
                option.name,
                option.default,
                option.help,
                boolean=option.kind is bool,
            )
            flags.DEFINE_flag(flag, flag_values)


def parse_flags(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Sets flags from the command line and from the file that its --config names.

    Args:
        argv: program name and arguments.
        flag_values: where the flags are defined (if they are not yet) and set.

    Returns:
        The program's name alone: nothing else may be left over.

    Raises:
        SystemExit: with code 0 after printing help; with code 2 after one line on stderr that says what is wrong.
    """
    define_flags(flag_values)
    asked = {argument.lstrip("-") for argument in argv[1:] if argument.startswith("-")}
    if asked & {"h", "help", "helpshort", "helpfull"}:
        sys.stdout.write(help_text(flag_values, full="helpfull" in asked))
        sys.exit(0)
    try:
        rest = flag_values(list(argv))
        if len(rest) > 1:
            raise ValueError(_stray_word(argv, rest))
        _read_config(flag_values)
        _check(flag_values)
    except flags.UnrecognizedFlagError as error:
        _fail(f"unknown flag --{error.flagname}{_did_you_mean(error.flagname, flag_values, '--')}")
    except (flags.Error, ValueError, OSError) as error:
        _fail(str(error))
    return rest


def args_text(flag_values: flags.FlagValues = flags.FLAGS) -> str:
    """All flags as sorted `name = value` lines, for args.txt; given back as --config they set the same values."""
    return "".join(f"{name} = {_spelling(flag_values[name].value)}\n" for name in sorted(OPTIONS))


def config_text(flag_values: flags.FlagValues = flags.FLAGS) -> str | None:
    """The text of the file named by --config, None without one."""
    path = flag_values["config"].value
    return None if path is None else Path(path).read_text(encoding="utf-8-sig")


def help_text(flag_values: flags.FlagValues = flags.FLAGS, full: bool = False) -> str:
    """The help page: flags in groups with their defaults; with `full`, also those that absl brings."""
    lines = ["usage: python -m nerf_tf [--config FILE] --expname NAME [flags]", ""]
    lines += ["A switch is given as --flag or --flag=True, and undone by --flag=False.", ""]
    for group, options in GROUPS.items():
        lines.append(f"{group}:")
        for option in options:
            values = "|".join(map(str, option.choices)) or "|".join([option.kind.__name__.upper(), *option.words])
            lines += _help_entry(
                f"--{option.name}" + ("" if option.kind is bool else f" {values}"), option.help, option.default
            )
        lines.append("")
    if full:
        lines.append("absl's own (command line only):")
        for name in sorted(set(flag_values) - set(OPTIONS)):
            lines += _help_entry(f"--{name}", flag_values[name].help, flag_values[name].default)
    return "\n".join(lines).rstrip() + "\n"


def _help_entry(title: str, meaning: str, default: object) -> list[str]:
    text = f"{' '.join(meaning.split())} (default: {default})"
    return [f"  {title}", *textwrap.wrap(text, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)]


def one_line(message: str) -> str:
    """A message as one line; what a terminal would act on rather than show, as names in files may hold, is escaped."""
    text = " ".join(message.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"nerf_tf: {one_line(message)}\n")
    sys.exit(2)


def _did_you_mean(name: str, flag_values: flags.FlagValues, dashes: str = "") -> str:
    known = {candidate.lower(): candidate for candidate in (flag_values if dashes else OPTIONS)}
    nearest = difflib.get_close_matches(name.lower(), known, n=1)
    return f"; did you mean {dashes}{known[nearest[0]]}?" if nearest else "; --help lists all flags"


def _stray_word(argv: Sequence[str], rest: Sequence[str]) -> str:
    """What to say about words that belong to no flag: most often the value of a switch, set off by a space."""
    word, before = rest[1], argv[max(len(argv) - len(rest[1:]) - 1, 0)]
    name = before.lstrip("-")
    if name in OPTIONS and OPTIONS[name].kind is bool:
        return f"stray word {word!r} after --{name}, a switch: write --{name} or --{name}={word}"
    return f"stray word {word!r}: every argument is --flag or --flag=value"


def _read_config(flag_values: flags.FlagValues) -> None:
    """Sets the flags that the command line left alone from the file named by --config."""
    path = flag_values["config"].value
    if path is None:
        return
    given = {name for name in OPTIONS if flag_values[name].present}
    for key, value in _read_file(path).items():
        name = key.removeprefix("--")
        if name == "config":  # The line that args.txt writes about its own run; files do not nest.
            continue
        if name not in OPTIONS:
            raise ValueError(f"{path}: unknown key {key!r}{_did_you_mean(name, flag_values)}")
        if isinstance(value, list):
            raise ValueError(f"{path}: {name} is a list; expected {OPTIONS[name].expected()}")
        try:
            parsed = OPTIONS[name].parse(value)
        except ValueError as error:
            raise ValueError(f"{path}: {name} = {value}: {error}") from None
        if name not in given:
            flag_values[name].value = parsed
            flag_values[name].using_default_value = False


def _read_file(path: str) -> dict[str, str | list]:
    text = untrusted.read_text(Path(path), _LARGEST_FILE, "; --config takes a file of `key = value` lines")
    try:
        if max(map(len, text.splitlines()), default=0) > _LONGEST_LINE:
            raise ValueError(f"a line is longer than {_LONGEST_LINE} characters")
        return configargparse.DefaultConfigFileParser().parse(io.StringIO(text))
    except (*untrusted.PARSER_ERRORS, configargparse.ConfigFileParserException) as error:
        raise ValueError(f"{path}: not a config file of `key = value` lines: {error}") from None


def _spelling(value: object) -> str:
    """How a value is written so that a config file gives it back; ValueError where it cannot be."""
    text = str(value)
    for spelling in (text, f'"{text}"', f"'{text}'"):
        if configargparse.DefaultConfigFileParser().parse(io.StringIO(f"key = {spelling}")) == {"key": text}:
            return spelling
    raise ValueError("a value with line breaks, or all within [ ], cannot be written to args.txt")


def _check(flag_values: flags.FlagValues) -> None:
    """Raises ValueError about values that are wrong together, or that would fail only late."""
    values = {name: flag_values[name].value for name in OPTIONS}
    for name, value in values.items():
        if isinstance(value, str) and (not value.strip() or value.startswith("--")):
            raise ValueError(f"--{name} has no value (found {value!r}); write --{name}=VALUE")
        if isinstance(value, str) and not value.replace("\n", " ").isprintable():
            raise ValueError(f"--{name}={value}: holds characters that cannot be printed")
        try:
            _spelling(value)
        except ValueError as error:
            raise ValueError(f"--{name}={value}: {error}") from None
    if values["expname"] is None:
        raise ValueError("--expname is missing: name the run, on the command line or in the --config file")
    if Path(values["expname"]).name != values["expname"] or values["expname"] == "..":
        raise ValueError(
            f"--expname={values['expname']}: expected one folder name; put the folders above it in --basedir"
        )
    if values["N_importance"] > 0 and values["N_samples"] < 3:
        raise ValueError(
            f"--N_samples={values['N_samples']}: --N_importance needs at least 3 coarse samples to draw from"
        )
    if values["eval_folder"] is not None and not values["eval_only"]:
        raise ValueError("--eval_folder names views to compare, which needs --eval_only")
    if values["eval_only"] and values["render_only"]:
        raise ValueError("--eval_only and --render_only are two things to do: choose one")
    if values["render_path_file"] is not None and (values["render_path"], values["render_frames"]) != ("auto", None):
        raise ValueError("--render_path_file is a path of its own: add --render_path=auto --render_frames=None")
    if None not in (values["near"], values["far"]) and values["near"] >= values["far"]:
        raise ValueError(f"--near={values['near']} is not below --far={values['far']}")


# What the parts below the program take. Their modules load TensorFlow, so they are imported late.


def field_settings(flag_values: flags.FlagValues, fine: bool) -> FieldSettings:
    """Shape of the coarse or the fine network."""
    from nerf_tf.field.mlp import FieldSettings

    encoded = flag_values.i_embed == 0
    return FieldSettings(
        depth=flag_values.netdepth_fine if fine else flag_values.netdepth,
        width=flag_values.netwidth_fine if fine else flag_values.netwidth,
        multires=flag_values.multires if encoded else 0,
        multires_views=flag_values.multires_views if encoded else 0,
        use_viewdirs=flag_values.use_viewdirs,
    )


def render_settings(flag_values: flags.FlagValues, ndc: bool) -> RenderSettings:
    """How rays become colours; `lindisp` has no effect under NDC, where t is even in disparity already.

    With `--chunk auto` the chunk is the default one until there is a plan.
    """
    from nerf_tf.render.renderer import RenderSettings

    chunk = {} if flag_values.chunk == "auto" else {"chunk": flag_values.chunk}
    return RenderSettings(
        N_samples=flag_values.N_samples,
        N_importance=flag_values.N_importance,
        perturb=flag_values.perturb,
        raw_noise_std=flag_values.raw_noise_std,
        white_bkgd=flag_values.white_bkgd,
        lindisp=flag_values.lindisp and not ndc,
        **chunk,
    )


def batch_settings(flag_values: flags.FlagValues) -> BatchSettings:
    """Which rays make a training batch."""
    from nerf_tf.data.pipeline import BatchSettings

    return BatchSettings(
        N_rand=flag_values.N_rand,
        no_batching=flag_values.no_batching,
        precrop_iters=flag_values.precrop_iters,
        precrop_frac=flag_values.precrop_frac,
    )


def train_settings(flag_values: flags.FlagValues) -> TrainSettings:
    """How weights move."""
    from nerf_tf.train.trainer import TrainSettings

    return TrainSettings(lrate=flag_values.lrate, lrate_decay=flag_values.lrate_decay)
