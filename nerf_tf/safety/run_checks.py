"""Checks of a run's folder before any work is done."""

from __future__ import annotations

import logging
import os

from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import run_folder
from nerf_tf.storage.run_folder import summaries_folder

logger = logging.getLogger(__name__)

MAX_NAME_BYTES = 255  # of one folder, on all common file systems


def check_folders(settings: Settings) -> None:
    """Checks, before any work and without writing, that the run's folders can be made.

    Raises:
        ValueError: the run's name is too long or would hide its checkpoints, or `--config` belongs to another run.
        OSError: a file has the folder's name, or there is no permission to make it.
    """
    run = settings.folder
    _check_the_configs_folder(settings)
    if settings.training and "[" in str(run):
        raise ValueError(
            f"{run}: TensorFlow finds no checkpoint under a name with [ in it; give another --expname or --basedir"
        )
    if len(os.fsencode(run.name)) > MAX_NAME_BYTES:
        raise ValueError(
            f"--expname has {len(os.fsencode(run.name))} bytes; a folder's name has {MAX_NAME_BYTES} at most"
        )
    for folder in (run / run_folder.CHECKPOINTS, summaries_folder(run)) if settings.training else (run,):
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not there.is_dir():
            raise NotADirectoryError(f"{there}: is no folder, and a run needs one of that name (--basedir, --expname)")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(f"{there}: nothing can be written there; give another --basedir")


def _check_the_configs_folder(settings: Settings) -> None:
    """Checks that a `--config` from a run's folder is used for that run, or that flags name another one.

    After a run was renamed, copied or moved, its args.txt names the old folder, and training would start over there.
    """
    if settings.config is None:
        return
    config = parsing.find_config(settings.config).resolve()
    progress = run_folder.describe_progress(config.parent)
    if progress is None or config.parent == settings.folder.resolve():
        return
    given = settings.from_command_line
    named = "expname" in given and ("basedir" in given or settings.expname != config.parent.name)
    if named or given & {"ft_path", "no_reload", "eval_folder"}:
        logger.info("%s: this run, with the flags of the one in %s", settings.folder, config.parent)
        return
    raise ValueError(
        f"{config}: {config.parent} holds {progress}, but the flags name the folder {settings.folder}; to continue "
        f"that run add --basedir {config.parent.parent} --expname {config.parent.name}; to use {settings.folder} all "
        f"the same add --basedir {settings.basedir} --expname {settings.expname}"
    )
