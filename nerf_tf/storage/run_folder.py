"""Inspects a run's folder: its progress, and which weight file `--ft_path` can mean."""

from __future__ import annotations

import re
from pathlib import Path

from nerf_tf.storage import tf1_weights

CHECKPOINTS = "checkpoints"


def summaries_folder(run: Path) -> Path:
    """The TensorBoard folder of the run in {basedir}/{expname}."""
    return run.parent / "summaries" / run.name


def describe_progress(folder: Path) -> str | None:
    """Describes how far the run in a folder has come; None if the folder holds no run."""
    newest = tf1_weights.newest(folder)
    if newest is not None:
        return f"a run of {tf1_weights.step_of(newest) + 1} steps"
    return "a run's checkpoints" if any((folder / CHECKPOINTS).glob("ckpt-*")) else None


def require_coarse_weights(path: Path) -> None:
    """Checks that `--ft_path` names a coarse weight file, without reading it.

    Raises:
        FileNotFoundError, ValueError: it names something else; the message says what, and which path to give instead.
    """
    fine = re.fullmatch(r"(.*)fine_(\d+\.npy)", path.name)
    if fine:
        coarse = path.with_name(fine[1] + fine[2])
        raise ValueError(
            f"--ft_path {path}: the fine network's weights; give the coarse ones, {coarse}, and the fine ones are "
            "found beside them"
        )
    if path.is_dir():
        raise ValueError(_explain_folder(path))
    if re.match(r"ckpt-\d+$", path.parent.name) or re.match(r"ckpt-\d+\.", path.name):
        raise ValueError(f"--ft_path {path}: a part of a checkpoint, not weights; {_advice(path)}")
    with_ending = path.with_name(f"{path.name}.npy")
    if path.exists():
        return
    there = with_ending if with_ending.is_file() else tf1_weights.newest(path.parent)
    if there is not None:
        raise FileNotFoundError(f"--ft_path {path}: no such file; give {there}")


def _explain_folder(folder: Path) -> str:
    if folder.name == CHECKPOINTS or any(folder.glob("ckpt-*")):
        kind = "a folder of checkpoints"
    elif re.fullmatch(r"ckpt-\d+", folder.name):
        kind = "a checkpoint"
    elif describe_progress(folder):
        kind = "a run's folder"
    else:
        return f"--ft_path {folder}: a folder without weights; give a file such as model_200000.npy"
    return f"--ft_path {folder}: {kind}, not weights; {_advice(folder)}"


def _advice(path: Path) -> str:
    """Tells how to continue the run that a path belongs to."""
    run = next((folder for folder in (path, *path.parents[:3]) if describe_progress(folder)), path)
    flags = f"--basedir {run.parent} --expname {run.name} without --ft_path"
    newest = tf1_weights.newest(run)
    if newest is None:
        return f"to continue that run give {flags}"
    return f"give its newest weights, {newest}, or to continue that run {flags}"
