"""Builds a hash-grid field, its trainer and its renderer from the settings of a run."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import tensorflow as tf

from nerf_tf import tensor_float
from nerf_tf.data.scene import Scene
from nerf_tf.geometry import poses as pose_maths
from nerf_tf.geometry.rays import Rays
from nerf_tf.hash_grid.field import HashGrid, HashGridField, HashGridSettings
from nerf_tf.hash_grid.packed_step import PackedTrainer, PackedTrainSettings
from nerf_tf.marching import importance
from nerf_tf.marching.compositing import PackedRendering, render_packed, render_rays
from nerf_tf.marching.contraction import GridSpace
from nerf_tf.marching.march import March, occupied_cells
from nerf_tf.marching.marching_renderer import MarchingRenderer
from nerf_tf.marching.visible_space import Box, ray_box, seen_box, seen_cells
from nerf_tf.render.passes import RenderSettings
from nerf_tf.settings.settings import Settings

logger = logging.getLogger(__name__)

# Samples whose density is evaluated for each one that is trained on: those that turn out to be hidden are left out.
CANDIDATES = 2
# Samples on each ray under NDC, where rays march through mostly occupied cells. Twice as many on half as many rays were
# 0.5 dB worse on fern after 600 steps. In contracted space rays march: a walk around a hall had 29.5 dB after two
# minutes, and 23.3 with samples spread like this.
RAY_SAMPLES = 16
# As many when views are rendered. fern after five minutes: 25.3, 25.6 and 25.7 dB with 16, 32 and 64; 24.0 dB where
# rays marched, as densities that were trained in long intervals are not those of short ones.
RENDERED_RAY_SAMPLES = 32
# Samples that are evaluated at once when views are rendered. Rays in their last rounds leave slots unused: four times
# as many slots took twice the time on two cores.
RENDER_SLOTS = 2**14
# Rays that march at once when views are rendered, and pixels of the viewer's first picture after a move.
MARCHING_RAYS = 2**13
# Radius of the ball that contraction leaves as it is, as a part of the cameras' distance from what they look at.
CORE_RADIUS = 0.5
# Weight of the distortion loss for photos that show surroundings: 0.01 for a ray with 16 samples (Barron et al. 2022,
# section 4). Less leaves fog, which takes samples and teaches nothing; ten times as much tears holes. Rays through fog
# have many samples, so that it counts little until surfaces are found: with 0.01 for every ray, the first fifty steps
# gathered all light right in front of the cameras where walls showed noise (18.3 dB), and it stayed there.
DISTORTION = 0.16


def make_trainer(settings: Settings, scene: Scene, seed: int) -> PackedTrainer:
    """Builds a hash grid with fresh weights and its trainer.

    Raises:
        ValueError: near is 0 in contracted space, see `grid_space`.
    """
    tensor_float.use(False)  # a trainer of networks may have turned it on before
    space, own = grid_space(settings, scene), hash_grid_settings(settings)
    surroundings = _show_surroundings(settings)
    training = PackedTrainSettings(
        slots=settings.grid_slots,
        ray_samples=RAY_SAMPLES if scene.ndc else None,
        lrate=settings.grid_lrate,
        steps=settings.N_iters,
        minutes=settings.train_minutes,
        perturb=settings.perturb > 0,
        # Against random colours a transparent ray is wrong where something should be seen: everywhere in photos that
        # show their surroundings, and elsewhere where alpha says so.
        random_background=surroundings or scene.alphas is not None,
        white_bkgd=settings.white_bkgd,
        distortion=DISTORTION if surroundings else 0.0,
    )
    possible = None if scene.alphas is None else seen_cells(scene, Box(space.lower, space.upper), own.cells)
    rays = settings.grid_slots // RAY_SAMPLES
    if scene.ndc and settings.N_rand > rays:
        text = "--N_rand=%d: under NDC a step has room for %d rays; give --N_rand=%d, or a larger --grid_slots"
        logger.warning(text, settings.N_rand, rays, rays)
    slots = settings.grid_slots * (1 if scene.ndc else CANDIDATES)
    march = March(space, own.cells, settings.grid_samples, slots, possible)
    return PackedTrainer(HashGridField(HashGrid(own, [seed, 0]), space), march, training, seed)


def _show_surroundings(settings: Settings) -> bool:
    """Whether photos show surroundings, rather than an object in front of nothing."""
    return settings.dataset_type == "llff" or (settings.dataset_type == "transforms" and not settings.white_bkgd)


def grid_space(settings: Settings, scene: Scene) -> GridSpace:
    """Chooses the space of a hash grid: the box of what can be seen, or all of space, contracted.

    It is contracted for photos that show their surroundings, unless NDC has done as much already.

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
    except ValueError:  # all cameras look the same way
        centre = (centres - scene.near * scene.poses[:, :, 2]).mean(axis=0)
    return GridSpace.around_ball(centre, CORE_RADIUS * float(np.linalg.norm(centres - centre, axis=-1).mean()))


def make_renderer(settings: Settings, scene: Scene, trainer: PackedTrainer) -> MarchingRenderer:
    """Builds the renderer of a hash grid; rays have samples of the kind that they have in training."""
    field, march = trainer.coarse, dataclasses.replace(trainer.march, slots=max(RENDER_SLOTS, trainer.march.samples))
    grid, densities = field.mlp, field.mlp.occupancy

    def march_rays(rays: Rays, end: tf.Tensor) -> PackedRendering:
        """Renders rays that march."""
        occupied = occupied_cells(densities.value, march)
        return render_rays(march, grid, occupied, rays, settings.white_bkgd, end)

    def spread_samples(rays: Rays, end: tf.Tensor) -> PackedRendering:
        """Renders rays whose samples are spread, without jitter; all of them, as each costs the same."""
        middle = tf.fill(rays.near.shape, 0.5)
        packed, samples = importance.draw_samples(march, densities.value, rays, middle, RENDERED_RAY_SAMPLES)
        return render_packed(march, grid, rays, packed, samples, settings.white_bkgd)

    return MarchingRenderer(
        field,
        None,
        RenderSettings(white_bkgd=settings.white_bkgd, chunk=MARCHING_RAYS),
        scene.near,
        scene.far,
        scene.ndc,
        unit=scene.unit,
        at_once=march.slots // RENDERED_RAY_SAMPLES if scene.ndc else MARCHING_RAYS,
        render=spread_samples if scene.ndc else march_rays,
    )


def hash_grid_settings(settings: Settings) -> HashGridSettings:
    """Returns the shape of the hash grid that the settings ask for."""
    return HashGridSettings(
        levels=settings.grid_levels,
        features=settings.grid_features,
        log2_table=settings.grid_log2_table,
        finest=settings.grid_finest,
        use_viewdirs=settings.use_viewdirs,
    )
