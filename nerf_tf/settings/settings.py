"""The frozen settings of a run: one value for each flag."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from nerf_tf.settings.options import MLP_ONLY, OPTIONS


@dataclasses.dataclass(frozen=True)
class _Checked:
    """What `Settings` has besides one field for each flag.

    Attributes:
        from_command_line, from_file: names of the flags that were set there.
    """

    from_command_line: frozenset[str] = dataclasses.field(default=frozenset(), kw_only=True, compare=False)
    from_file: frozenset[str] = dataclasses.field(default=frozenset(), kw_only=True, compare=False)

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            try:
                option.check(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"--{name}={getattr(self, name)}: {error}") from None
        _check_combinations(self)

    def replace(self, **changes: Any) -> Settings:
        """The same settings with other values for some flags."""
        return dataclasses.replace(self, **changes)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.basedir) / self.expname

    def without_effect(self) -> list[str]:
        """Names of the flags that were changed from their defaults and have no effect on this dataset type."""
        return [
            name
            for name, option in OPTIONS.items()
            if option.datasets and self.dataset_type not in option.datasets and getattr(self, name) != option.default
        ]

    def without_effect_on_hash_grid(self) -> list[str]:
        """Names of the flags that were changed from their defaults and mean nothing to a hash grid."""
        return [name for name in MLP_ONLY if getattr(self, name) != OPTIONS[name].default]

    @property
    def training(self) -> bool:
        """Whether the run trains, rather than renders or evaluates."""
        return not (self.render_only or self.eval_only)


# The table of flags is the one place that lists names, types and defaults.
Settings = dataclasses.make_dataclass(
    "Settings",
    [(name, option.kind, dataclasses.field(default=option.default, kw_only=True)) for name, option in OPTIONS.items()],
    bases=(_Checked,),
    frozen=True,
)
Settings.__doc__ = """All settings of a run, by the names and with the defaults of the flags (see `options.OPTIONS`).

Raises:
    ValueError: a value is out of its range, or two contradict each other.
"""


def _check_combinations(settings: Settings) -> None:
    """Raises ValueError about values that contradict each other."""
    name = settings.expname
    if name is not None and (Path(name).name != name or name == ".."):
        raise ValueError(f"--expname={name}: expected one folder name; put the folders above it in --basedir")
    if settings.N_importance > 0 and settings.N_samples < 3:
        raise ValueError(
            f"--N_samples={settings.N_samples}: --N_importance needs at least 3 coarse samples to draw from"
        )
    if settings.eval_folder is not None and not settings.eval_only:
        raise ValueError("--eval_folder names views to compare, which needs --eval_only")
    if settings.eval_only and settings.render_only:
        raise ValueError("--eval_only and --render_only are two things to do: choose one")
    if settings.render_width is not None and settings.render_factor > 1:
        raise ValueError(
            f"--render_width={settings.render_width} and --render_factor={settings.render_factor} both give the size "
            "of views: take --render_width, and add --render_factor=0"
        )
    if settings.render_width is not None and settings.eval_only:
        raise ValueError("--eval_only compares views with photos of the same size: add --render_width=None")
    if settings.render_path_file is not None and (settings.render_path, settings.render_frames) != ("auto", None):
        raise ValueError("--render_path_file is a path of its own: add --render_path=auto --render_frames=None")
    if settings.field == "hash_grid" and settings.mixed_precision != "float32":
        raise ValueError(f"--mixed_precision={settings.mixed_precision}: a hash grid computes in float32; leave it out")
    if settings.field == "hash_grid" and settings.occupancy:
        raise ValueError("--occupancy is for --field=mlp: a hash grid skips empty space by itself; leave it out")
    if settings.field == "hash_grid" and settings.grid_slots < settings.grid_samples:
        raise ValueError(
            f"--grid_slots={settings.grid_slots} is less than --grid_samples={settings.grid_samples}: a ray must fit"
        )
    if settings.train_minutes is not None and settings.field != "hash_grid":
        raise ValueError(
            "--train_minutes needs --field=hash_grid: the paper's learning rate goes by steps; give --N_iters"
        )
    if None not in (settings.near, settings.far) and settings.near >= settings.far:
        raise ValueError(f"--near={settings.near} is not below --far={settings.far}")
