"""Builds a hash-grid field, its trainer and its renderer from the settings of a run."""

from __future__ import annotations

import dataclasses

import numpy as np

from nerf_tf.data.scene import Scene
from nerf_tf.data.visible_space import ray_box, seen_box, seen_cells
from nerf_tf.field import tensor_float
from nerf_tf.field.hash_grid import HashGrid, HashGridField, HashGridSettings
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.box import Box
from nerf_tf.geometry.contraction import GridSpace
from nerf_tf.render.marching import March, occupied_cells
from nerf_tf.render.marching_renderer import MarchingRenderer
from nerf_tf.render.passes import RenderSettings
from nerf_tf.settings.settings import Settings
from nerf_tf.train.packed_step import PackedTrainer, PackedTrainSettings

# For each sample that is trained on, those whose density is asked for to find out which are hidden.
CANDIDATES = 2
# Samples that a hash grid is asked about at once when views are rendered. The last rays of a round leave slots unused:
# four times as many slots took twice the time on two cores.
RENDER_SLOTS = 2**14
# In contracted space, the part of the cameras' distance from what they look at within which nothing is contracted.
CORE_RADIUS = 0.5
# How much distortion counts in photos with all that is around (Barron et al. 2022, section 4): less leaves fog, which
# has samples without teaching anything, and ten times as much tears holes.
DISTORTION = 0.01


def make_trainer(settings: Settings, scene: Scene, seed: int) -> PackedTrainer:
    """Builds a hash grid with fresh weights and its trainer.

    Raises:
        ValueError: near is 0 in a scene without NDC and bounds.
    """
    tensor_float.use(False)  # a trainer of networks may have turned it on before
    space, own = grid_space(settings, scene), hash_grid_settings(settings)
    training = PackedTrainSettings(
        slots=settings.grid_slots,
        lrate=settings.grid_lrate,
        steps=settings.N_iters,
        minutes=settings.train_minutes,
        perturb=settings.perturb > 0,
        # Each ray of a photo ends at something; where photos have an alpha, it says which rays do.
        random_background=_show_surroundings(settings) or scene.alphas is not None,
        white_bkgd=settings.white_bkgd,
        distortion=DISTORTION if _show_surroundings(settings) else 0.0,
    )
    possible = None if scene.alphas is None else seen_cells(scene, Box(space.lower, space.upper), own.cells)
    march = March(space, own.cells, settings.grid_samples, CANDIDATES * settings.grid_slots, possible)
    return PackedTrainer(HashGridField(HashGrid(own, [seed, 0]), space), march, training, seed)


def _show_surroundings(settings: Settings) -> bool:
    """Whether images are photos with all that is around, rather than pictures of an object before nothing."""
    return settings.dataset_type == "llff" or (settings.dataset_type == "transforms" and not settings.white_bkgd)


def grid_space(settings: Settings, scene: Scene) -> GridSpace:
    """Where a hash grid lies: in the box of what can be seen, or for photos without NDC in all of space, contracted.

    Raises:
        ValueError: in contracted space samples are even in 1/t, which needs near > 0.
    """
    if scene.ndc or not _show_surroundings(settings):
        box = ray_box(scene) if scene.ndc else seen_box(scene)
        return GridSpace(box.lower.astype(np.float32), box.upper.astype(np.float32))
    if scene.near <= 0:
        raise ValueError(
            f"--field=hash_grid samples evenly in 1/t, which needs near > 0 (it is {scene.near:g}); give --near"
        )
    centres = scene.poses[:, :, 3]
    try:
        centre = pose_maths.nearest_point_to_axes(scene.poses)
    except ValueError:  # they all look the same way
        centre = (centres - scene.near * scene.poses[:, :, 2]).mean(axis=0)
    return GridSpace.around_ball(centre, CORE_RADIUS * float(np.linalg.norm(centres - centre, axis=-1).mean()))


def make_renderer(settings: Settings, scene: Scene, trainer: PackedTrainer) -> MarchingRenderer:
    """Builds the renderer of a hash grid, which marches through its occupancy grid."""
    field, march = trainer.coarse, dataclasses.replace(trainer.march, slots=max(RENDER_SLOTS, trainer.march.samples))
    return MarchingRenderer(
        field,
        None,
        RenderSettings(white_bkgd=settings.white_bkgd),
        scene.near,
        scene.far,
        scene.ndc,
        unit=scene.unit,
        grid=field.mlp,
        occupied=lambda: occupied_cells(field.mlp.occupancy.value, march),
        march=march,
    )


def hash_grid_settings(settings: Settings) -> HashGridSettings:
    """Shape of the hash grid."""
    return HashGridSettings(
        levels=settings.grid_levels,
        features=settings.grid_features,
        log2_table=settings.grid_log2_table,
        finest=settings.grid_finest,
        use_viewdirs=settings.use_viewdirs,
    )
