"""The table of all flags: names, types, defaults, meanings, and the values that they take."""

from __future__ import annotations

import dataclasses
import math


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
        datasets: the dataset types on which it has an effect; empty: all.
    """

    name: str
    kind: type
    default: bool | int | float | str | None
    help: str
    _: dataclasses.KW_ONLY
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[int | str, ...] = ()
    words: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    def expected(self) -> str:
        """What a value must be, in words."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        words = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}[self.kind]
        bounds = ((">=", self.low), (">", self.above), ("<=", self.high))
        within = " and ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None)
        return f"{words} {within}".strip() + "".join(f" or {word}" for word in self.words)

    def parse(self, text: str) -> bool | int | float | str | None:
        """The value that a text stands for.

        Raises:
            ValueError: the flag takes no such value; the message says what was expected.
        """
        if self.default is None and text in ("None", ""):
            return None
        if text in self.words:
            return text
        try:
            value = _BOOLEANS[text.lower()] if self.kind is bool else self.kind(text)
        except (KeyError, ValueError):
            raise ValueError(f"expected {self.expected()}") from None
        self.check(value)
        return value

    def check(self, value: object) -> None:
        """Raises ValueError, saying what was expected, unless the flag may have that value."""
        if (value is None and self.default is None) or value in self.words:
            return
        kinds = (int, float) if self.kind is float else self.kind
        if not isinstance(value, kinds) or (isinstance(value, bool) and self.kind is not bool):
            raise ValueError(f"expected {self.expected()}")
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


# The words that configargparse, the original's parser, takes for a switch in a file, and absl's short forms.
_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1", "t"), True) | dict.fromkeys(
    ("false", "no", "off", "0", "f"), False
)

# What TensorFlow's tensors of 32 bits hold: the largest value of flags without a bound of their own.
_LARGEST = {int: 2**31 - 1, float: 3.4e38}

_MAX_SEED = 2**32 - 1  # What numpy, and so the original, takes as a seed.

# Flags of the paper's networks and their two passes; they have no effect on a hash grid.
MLP_ONLY = (
    *("netdepth", "netwidth", "netdepth_fine", "netwidth_fine", "lrate", "lrate_decay", "chunk", "netchunk"),
    *("N_samples", "N_importance", "i_embed", "multires", "multires_views", "raw_noise_std", "lindisp"),
    *("memory_budget_mb", "jit_compile"),
)

# Order and groups are those of the original's help; all but the last five groups are the original's flags.
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
        Option(
            "chunk", int, 32768, "rays processed at once; auto: what fits --memory_budget_mb", low=1, words=("auto",)
        ),
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
        Option(
            "random_seed",
            int,
            None,
            "seed of every random draw; unset: a new one, which is logged",
            low=0,
            high=_MAX_SEED,
        ),
    ),
    "pre-crop": (
        Option("precrop_iters", int, 0, "first steps that see only the images' centre (with --no_batching)", low=0),
        Option("precrop_frac", float, 0.5, "side of that centre, as a fraction of the image's", above=0, high=1),
    ),
    "rendering": (
        Option("N_samples", int, 64, "coarse samples on a ray", low=2, high=2**16),
        Option("N_importance", int, 0, "fine samples added on a ray; 0: no fine network", low=0, high=2**16),
        Option("perturb", float, 1.0, "1: samples are jittered while training; 0: they are not", low=0),
        Option("use_viewdirs", bool, False, "colour depends on the viewing direction"),
        Option("i_embed", int, 0, "0: positional encoding; -1: none", choices=(0, -1)),
        Option("multires", int, 10, "frequencies in the encoding of positions", low=0, high=64),
        Option("multires_views", int, 4, "frequencies in the encoding of viewing directions", low=0, high=64),
        Option("raw_noise_std", float, 0.0, "noise added to density while training; 1 is advised for photos", low=0),
        Option("render_only", bool, False, "render and stop; nothing is trained"),
        Option("render_test", bool, False, "with --render_only: the test views instead of the path"),
        Option("render_factor", int, 0, "divide the sides of rendered images by this; 0: full size", low=0),
    ),
    "data": (
        Option("dataset_type", str, "llff", "kind of scene", choices=("llff", "blender", "deepvoxels", "transforms")),
        Option(
            "testskip",
            int,
            8,
            "keep every n-th test and validation image (blender, deepvoxels); 0: all",
            low=0,
            datasets=("blender", "deepvoxels"),
        ),
    ),
    "deepvoxels": (
        Option(
            "shape",
            str,
            "greek",
            "object to load",
            choices=("armchair", "cube", "greek", "vase"),
            datasets=("deepvoxels",),
        ),
    ),
    "blender": (
        Option("white_bkgd", bool, False, "put images on white where they are transparent"),
        Option("half_res", bool, False, "halve the images' sides", datasets=("blender",)),
    ),
    "llff": (
        Option(
            "factor",
            int,
            8,
            "divide the images' sides by this; 0 or 1: full size (transforms, too)",
            low=0,
            datasets=("llff", "transforms"),
        ),
        Option(
            "no_ndc",
            bool,
            False,
            "no normalised device coordinates: for scenes that do not face forward",
            datasets=("llff",),
        ),
        Option("lindisp", bool, False, "space samples evenly in disparity (1/depth) rather than in depth"),
        Option("spherify", bool, False, "the cameras surround the scene (360 degrees)", datasets=("llff",)),
        Option(
            "llffhold",
            int,
            8,
            "every n-th image is a test image; 0: only the most central one (transforms without splits, too)",
            low=0,
            datasets=("llff", "transforms"),
        ),
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
            "what networks compute in; weights, rays and compositing stay float32. tf32: as float32, but recent NVIDIA "
            "GPUs keep 10 bits of the factors of products. float16 scales the loss",
            choices=("float32", "tf32", "bfloat16", "float16"),
        ),
        Option(
            "jit_compile",
            str,
            "auto",
            "whether XLA compiles a step, or the rendering of a chunk, into one program; auto: on a GPU only, as it is "
            "slower on a CPU",
            choices=("auto", "true", "false"),
        ),
        Option(
            "distribute",
            str,
            "none",
            "split training steps over devices, and share out views. mirrored: this machine's GPUs; multi_worker: "
            "several processes, named by TF_CONFIG or Slurm; auto: mirrored where there are several GPUs",
            choices=("none", "mirrored", "multi_worker", "auto"),
        ),
        Option("occupancy", bool, False, "render faster: skip empty space, and what a surface hides"),
    ),
    "hash grid (new here)": (
        Option(
            "field",
            str,
            "mlp",
            "what a scene is stored in: the paper's networks, or a hash grid, which trains in minutes",
            choices=("mlp", "hash_grid"),
        ),
        Option(
            "train_minutes",
            float,
            None,
            "hash_grid: training ends after so many minutes of steps, or N_iters; the learning rate falls until then",
            above=0,
        ),
        Option("grid_lrate", float, 2e-2, "hash_grid: highest learning rate", above=0),
        Option("grid_slots", int, 2**13, "hash_grid: samples in a training step", low=2**10, high=2**22),
        Option("grid_samples", int, 128, "hash_grid: most samples on a ray", low=16, high=2**12),
        Option("grid_levels", int, 8, "hash_grid: levels of resolution", low=1, high=32),
        Option("grid_features", int, 4, "hash_grid: features in each level", low=1, high=8),
        Option("grid_log2_table", int, 18, "hash_grid: entries in each level's table, as a power of 2", low=8, high=24),
        Option("grid_finest", int, 512, "hash_grid: cells along a side of the finest level", low=16, high=2**14),
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
        Option("render_frames", int, None, "frames of that path; unset: as many as it has, or 120", low=2, high=108000),
        Option("fps", int, 30, "frames per second of videos", low=1, high=1000),
    ),
    "new here": (
        Option("N_iters", int, 1000000, "training stops after this many steps", low=1),
        Option("near", float, None, "start of the rays' range, instead of the scene's own", low=0),
        Option("far", float, None, "end of the rays' range, instead of the scene's own", above=0),
        Option(
            "render_width",
            int,
            None,
            "width in pixels of views of the path and of test views, unlike the photos'; unset: as --render_factor",
            low=1,
            high=2**14,
        ),
        Option("save_arrays", bool, False, "also write float rgb, disp, acc and depths of every rendered view (npz)"),
        Option("eval_only", bool, False, "compare the test views at full size with their photos, and stop"),
        Option("eval_folder", str, None, "with --eval_only: the views NNN.png in this folder; nothing is rendered"),
    ),
}
OPTIONS: dict[str, Option] = {option.name: option for group in GROUPS.values() for option in group}
