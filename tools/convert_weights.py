"""Converts weights between nerf-pytorch's checkpoints and the original's files, which nerf_tf reads.

    python tools/convert_weights.py logs/fern/200000.tar --out weights
    python tools/convert_weights.py weights/model_200000.npy --out torch

The first writes model_200000.npy for --ft_path and, of the fine network, model_fine_200000.npy. The second writes
200000.tar, with the fine network if its file lies beside the coarse one. The step is taken from the file's name, or
else from the checkpoint. The optimizer's moments are not converted. PyTorch is not needed, and no code in a checkpoint
is run. Prints the files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from support import commandline

from nerf_tf.field.mlp import BOTTLENECK_WIDTH, SKIP_AFTER
from nerf_tf.storage import readers, tf1_weights, torch_weights

COARSE, FINE, STEP = "network_fn_state_dict", "network_fine_state_dict", "global_step"

State = dict[str, np.ndarray]


def to_original(state: State) -> list[np.ndarray]:
    """Converts a network of nerf-pytorch to the arrays of a weight file.

    Args:
        state: by name `LAYER.weight` [out, in] and `LAYER.bias` [out].

    Returns:
        Of every layer the kernel [in, out], then the bias [out]; trunk, bottleneck, views, rgb, alpha, or trunk, raw.

    Raises:
        ValueError: a layer is missing, unknown, or of a shape that the original's network does not have.
    """
    state = {name.removeprefix("module."): array for name, array in state.items()}  # of DataParallel
    depth = next(i for i in range(len(state) + 1) if f"pts_linears.{i}.weight" not in state)
    has_views = "rgb_linear.weight" in state
    heads = ["feature_linear", "views_linears.0", "rgb_linear", "alpha_linear"] if has_views else ["output_linear"]
    names = [*(f"pts_linears.{i}" for i in range(depth)), *heads]
    # nerf-pytorch has this layer without view directions too, but does not use it.
    unused = set() if has_views else {"views_linears.0"}
    found = {name.rpartition(".")[0] for name in state}
    if not depth or found - unused != set(names):
        wrong = sorted(found - unused ^ set(names)) or ["pts_linears.0"]
        raise ValueError(f"it has no network of nerf-pytorch: {wrong[0][:80]!r} is missing or not known")
    layers = []
    for name in names:
        kernel, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
        if kernel is None or bias is None or kernel.ndim != 2 or bias.shape != kernel.shape[:1]:
            raise ValueError(f"{name} has no proper weight and bias")
        layers.append((kernel.T, bias))
    if not has_views:
        # With a fine network it has 5 outputs, of which the last is unused.
        layers[-1] = (layers[-1][0][:, :4], layers[-1][1][:4])
    _check_shapes(names, layers, has_views)
    if has_views:
        layers[depth : depth + 2] = _with_bottleneck(*layers[depth], *layers[depth + 1], width=BOTTLENECK_WIDTH)
    return [np.ascontiguousarray(array, np.float32) for layer in layers for array in layer]


def to_torch(weights: Sequence[np.ndarray], outputs: int = 4) -> State:
    """Converts the arrays of a weight file to a network of nerf-pytorch; the inverse of `to_original`.

    Args:
        weights: what `tf1_weights.load` returned.
        outputs: units of the last layer without view directions. nerf-pytorch has 5 in runs with a fine network, of
            which it uses 4.

    Raises:
        ValueError: they are not a network of the original.
    """
    layers = list(zip(weights[::2], weights[1::2], strict=False))
    if len(weights) % 2 or any(kernel.ndim != 2 or bias.shape != kernel.shape[1:] for kernel, bias in layers):
        raise ValueError("its arrays are not a kernel and a bias of each layer")
    has_views = len(layers) > 4 and layers[-1][1].shape == (1,)
    heads = ["feature_linear", "views_linears.0", "rgb_linear", "alpha_linear"] if has_views else ["output_linear"]
    depth = len(layers) - len(heads)
    if depth < 1:
        raise ValueError(f"it has {len(layers)} layers, too few for a network")
    width = layers[0][0].shape[1]
    if has_views:
        layers[depth : depth + 2] = _with_bottleneck(*layers[depth], *layers[depth + 1], width=width)
    names = [*(f"pts_linears.{i}" for i in range(depth)), *heads]
    _check_shapes(names, layers, has_views)
    if not has_views:
        kernel, bias = layers[-1]
        layers[-1] = (np.pad(kernel, [(0, 0), (0, outputs - 4)]), np.pad(bias, (0, outputs - 4)))
        layers.append((np.zeros([width, width // 2]), np.zeros(width // 2)))
        names.append("views_linears.0")
    state = {}
    for name, (kernel, bias) in zip(names, layers, strict=True):
        state[f"{name}.weight"], state[f"{name}.bias"] = kernel.T.astype(np.float32), bias.astype(np.float32)
    return state


def _check_shapes(names: Sequence[str], layers: Sequence[tuple[np.ndarray, np.ndarray]], has_views: bool) -> None:
    """Raises ValueError unless kernels [in, out] fit nerf-pytorch's network, its skip at `SKIP_AFTER`."""
    points, width = layers[0][0].shape
    depth = len(layers) - (4 if has_views else 1)
    expected = [(points, width)]
    expected += [(width + points if i == SKIP_AFTER else width, width) for i in range(depth - 1)]
    if has_views:
        viewdirs = layers[depth + 1][0].shape[0] - width
        expected += [(width, width), (width + viewdirs, width // 2), (width // 2, 3), (width, 1)]
        if viewdirs < 3:
            raise ValueError(f"views_linears.0 takes {viewdirs} numbers of a view direction; expected 3 or more")
    else:
        expected.append((width, 4))
    for name, (kernel, _), shape in zip(names, layers, expected, strict=True):
        if kernel.shape != shape:
            raise ValueError(
                f"{name} takes {kernel.shape[0]} numbers to {kernel.shape[1]}; expected {shape[0]} to {shape[1]}, as "
                f"the original has {width} units in each layer of the trunk, and its skip behind layer {SKIP_AFTER}"
            )


def _with_bottleneck(
    bottleneck: np.ndarray, bottleneck_bias: np.ndarray, views: np.ndarray, views_bias: np.ndarray, width: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Changes the bottleneck's width; together with the view layer it computes the same.

    Kernels are [in, out]. nerf-pytorch's bottleneck is as wide as the trunk, the original's 256. It has no activation,
    so only its product with the view layer matters.
    """
    old = bottleneck.shape[1]
    if old == width:
        return [(bottleneck, bottleneck_bias), (views, views_bias)]
    units = views.shape[1]
    if units > width or old > len(views):
        raise ValueError(f"a view layer of {units} units does not fit a bottleneck of {width}")
    unused = [(0, 0), (0, width - units)]
    product = bottleneck.astype(np.float64) @ views[:old]
    bias = bottleneck_bias.astype(np.float64) @ views[:old]
    return [
        (np.pad(product, unused), np.pad(bias, unused[1])),
        (np.concatenate([np.eye(width, units), views[old:]]), views_bias),
    ]


def from_torch_file(path: Path, out: Path) -> list[Path]:
    """Writes the weight files of a checkpoint; returns them, the coarse network's first.

    Raises:
        FileNotFoundError, ValueError: it is missing, or no checkpoint of nerf-pytorch with a training step.
    """
    entries = torch_weights.load(path, (COARSE, FINE, STEP))
    with readers.path_in_errors(path):
        if not isinstance(entries.get(COARSE), dict):
            raise ValueError(f"it lacks {COARSE}, so it is no checkpoint of nerf-pytorch")
        step = path.stem if path.stem.isdecimal() else entries.get(STEP)
        if isinstance(step, dict | None) or not 0 <= int(step) < 10**18:
            raise ValueError("neither its name nor its global_step is a training step; name it as in 200000.tar")
        networks = [to_original(entries[key]) for key in (COARSE, FINE) if key in entries]
    files = [out / f"model_{int(step):06d}.npy", out / f"model_fine_{int(step):06d}.npy"][: len(networks)]
    for file, weights in reversed(list(zip(files, networks, strict=True))):
        tf1_weights.save(file, weights)
    return files


def to_torch_file(path: Path, out: Path) -> Path:
    """Writes a checkpoint of a weight file and, if there is one, the fine one; returns its path."""
    step, fine = tf1_weights.step_of(path), tf1_weights.fine_path(path)
    files = {COARSE: path} | ({FINE: fine} if fine.is_file() else {})
    content: dict[str, object] = {STEP: step}
    for key, file in files.items():
        weights = tf1_weights.load(file)
        with readers.path_in_errors(file):
            content[key] = to_torch(weights, outputs=3 + len(files))
    parameters = sum(len(content[key]) for key in files)
    # The state of a torch.optim.Adam before its first step, with nerf-pytorch's settings.
    group = {"lr": 5e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False}
    group["params"] = list(range(parameters))
    content["optimizer_state_dict"] = {"state": {}, "param_groups": [group]}
    file = out / f"{step:06d}.tar"
    torch_weights.save(file, content)
    return file


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = commandline.Parser("convert_weights", __doc__)
    parser.add_argument("file", type=Path, help="nerf-pytorch's NNNNNN.tar, or model_NNNNNN.npy")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args: argparse.Namespace = parser.parse_args(argv)
    try:
        if args.file.suffix == ".npy" and torch_weights.describe_torch_file(args.file) is None:
            files = [to_torch_file(args.file, args.out)]
        else:
            files = from_torch_file(args.file, args.out)
    except (ValueError, OSError) as error:
        return commandline.fail("convert_weights", error)
    print(*files, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
