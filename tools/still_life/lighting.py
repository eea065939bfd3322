"""Lighting of the built-in scene. Only highlights and reflections depend on the view direction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from still_life.solids import Solid, crossing, normals, passing

# The key light: a disc in the sky, 5 degrees in radius, as points on a sunflower spiral, which fills it evenly.
_KEY = np.array([-0.5, -0.55, 0.95]) / np.linalg.norm([-0.5, -0.55, 0.95])
_KEY_RADIUS = np.tan(np.radians(5.0))
_KEY_SAMPLES = 28
_FILL = np.array([0.6, 0.65, 0.45]) / np.linalg.norm([0.6, 0.65, 0.45])


def _key_directions() -> np.ndarray:
    """[_KEY_SAMPLES, 3] unit directions towards the key light."""
    number = np.arange(_KEY_SAMPLES)
    radius = _KEY_RADIUS * np.sqrt((number + 0.5) / _KEY_SAMPLES)
    angle = number * np.pi * (3.0 - np.sqrt(5.0))
    right = np.cross(_KEY, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    up = np.cross(right, _KEY)
    spread = _KEY + radius[:, None] * (np.cos(angle)[:, None] * right + np.sin(angle)[:, None] * up)
    return spread / np.linalg.norm(spread, axis=-1, keepdims=True)


def key_visibility(solids: Sequence[Solid], points: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Share [P] of the key light that reaches points [P, 3] on the solids numbered `owners` [P]."""
    lights = _key_directions()
    hidden = np.zeros((len(points), len(lights)), bool)
    along, off_axis2 = passing(solids, points, np.broadcast_to(_KEY, points.shape))
    for number, solid in enumerate(solids):
        if not solid.occludes:
            continue
        # Only points whose cone of light rays touches the bound count. A convex solid never shades its own lit side;
        # the cosine darkens the other one. The light comes from above, so points above a solid are not shaded by it.
        reach = solid.bound[1] + _KEY_RADIUS * np.maximum(along[number], 0.0)
        touched = (off_axis2[number] < reach**2) & (along[number] > -solid.bound[1])
        touched &= (owners != number) & (points[:, 2] < solid.top)
        near = np.flatnonzero(touched)
        if len(near):
            t_in, t_out = crossing(solid, points[near, None], lights)
            hidden[near] |= (t_in < t_out) & (t_out > 1e-4)
    return 1.0 - hidden.mean(axis=-1)


def openness(solids: Sequence[Solid], points: np.ndarray, facing: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Share [P] of the sky that other solids leave free, each taken as a ball of about its volume."""
    free = np.ones(len(points))
    middles = np.stack([solid.bound[0] for solid in solids])
    apart2 = np.einsum("sc,sc->s", middles, middles)[:, None] - 2.0 * middles @ points.T
    apart2 += np.einsum("pc,pc->p", points, points)
    towards = middles @ facing.T - np.einsum("pc,pc->p", points, facing)  # distance times cosine
    for number, solid in enumerate(solids):
        if solid.blocks_sky > 0.0:
            distance2 = np.maximum(apart2[number], solid.blocks_sky**2)
            share = np.maximum(towards[number], 0.0) * solid.blocks_sky**2 / (distance2 * np.sqrt(distance2))
            free *= np.where(owners == number, 1.0, 1.0 - 0.85 * share)
    return free


def shade(
    solids: Sequence[Solid], points: np.ndarray, owners: np.ndarray, viewdirs: np.ndarray | None = None
) -> np.ndarray:
    """Computes displayed colours of surface points.

    Key light with soft shadow, fill light, sky above, warm bounce below and contact darkening. With `viewdirs` also a
    Blinn-Phong highlight and a reflection of the sky.

    Args:
        solids: the scene.
        points: [P, 3] on surfaces.
        owners: [P] index of the solid that each lies on.
        viewdirs: [P, 3] unit directions of the rays that see them; None: the diffuse colour alone.

    Returns:
        [P, 3] in [0, 1].
    """
    albedo, facing, gloss = np.zeros((len(points), 3)), np.zeros((len(points), 3)), np.zeros(len(points))
    for number in np.unique(owners):
        mine = owners == number
        solid = solids[number]
        local = (points[mine] - solid.centre) @ solid.to_local.T
        albedo[mine], facing[mine], gloss[mine] = solid.paint(local), normals(solid, local), solid.gloss
    cosine = np.maximum(facing @ _KEY, 0.0)
    visible = np.zeros(len(points))
    lit = np.flatnonzero(cosine > 0.0)
    visible[lit] = key_visibility(solids, points[lit], owners[lit])
    free = openness(solids, points, facing, owners)
    sky, bounce = np.array([0.46, 0.5, 0.56]), np.array([0.3, 0.26, 0.22])
    ambient = bounce + (sky - bounce) * (0.5 + 0.5 * facing[:, 2:])
    light = ambient * free[:, None]
    light = light + (cosine * visible)[:, None] * np.array([1.0, 0.95, 0.86])
    light = light + (np.maximum(facing @ _FILL, 0.0) * free)[:, None] * np.array([0.3, 0.33, 0.38])
    radiance = albedo * light
    if viewdirs is not None:
        half = _KEY - viewdirs
        half /= np.linalg.norm(half, axis=-1, keepdims=True)
        highlight = np.maximum(np.sum(facing * half, axis=-1), 0.0) ** 60 * visible
        facing_view = -np.sum(facing * viewdirs, axis=-1)
        mirrored_up = viewdirs[:, 2] + 2.0 * facing_view * facing[:, 2]
        fresnel = 0.04 + 0.6 * (1.0 - np.clip(facing_view, 0.0, 1.0)) ** 4
        reflection = fresnel * free * np.clip(0.5 + 0.5 * mirrored_up, 0.0, 1.0)
        radiance = radiance + (gloss * (1.3 * highlight + 0.6 * reflection))[:, None]
    return np.clip(radiance, 0.0, 1.0) ** (1.0 / 2.2)
