"""Convex solids that rays meet in closed form: the geometry of the built-in scene.

There are two shapes: a quadric of revolution cut by two planes (balls, eggs, discs, cones) and a box. Each has a local
frame, reached by an affine map, which does not change the ray parameter t.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

# Rays with a component smaller than this along a slab count as parallel to it.
_PARALLEL = 1e-12


# Local points [P, 3] -> colours [P, 3], linear light in [0, 1].
Paint = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Solid:
    """A convex body; a world point p has local coordinates `to_local @ (p - centre)`.

    Attributes:
        centre: [3] the origin of the local frame in the world.
        to_local: [3, 3] world to local directions; scaling allowed.
        profile: (a, b, c) of the body x^2 + y^2 <= a z^2 + b z + c, or None for the cube [-1, 1]^3.
        z_range: the planes that cut the body along local z; a cone's tip is not between them.
        paint: its colours.
        gloss: strength of the highlight.
        bound: (middle [3], radius) of a sphere around the body in the world.
        top: height that no point of it exceeds.
        occludes: whether it casts shadows.
        blocks_sky: radius of the ball by which it darkens points nearby; 0 for none.
    """

    centre: np.ndarray
    to_local: np.ndarray
    profile: tuple[float, float, float] | None
    z_range: tuple[float, float]
    paint: Paint
    gloss: float
    bound: tuple[np.ndarray, float]
    top: float
    occludes: bool = True
    blocks_sky: float = 0.0


def rotation(yaw: float, pitch: float = 0.0) -> np.ndarray:
    """[3, 3] local to world: pitch about y (degrees, lifts the local x axis), then yaw about z."""
    cy, sy = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    cp, sp = np.cos(np.radians(pitch)), np.sin(np.radians(pitch))
    about_z = np.array([[cy, -sy, 0.0], [sy, cy, 0.0], [0.0, 0.0, 1.0]])
    about_y = np.array([[cp, 0.0, -sp], [0.0, 1.0, 0.0], [sp, 0.0, cp]])
    return about_z @ about_y


def ellipsoid(
    centre: Sequence[float],
    radii: Sequence[float],
    paint: Paint,
    gloss: float = 0.3,
    axes: np.ndarray | None = None,
    z_range: tuple[float, float] = (-1.0, 1.0),
) -> Solid:
    """An ellipsoid of the given radii along the columns of `axes`; `z_range` in units of the third radius."""
    centre, radii, axes = np.asarray(centre, np.float64), np.asarray(radii), np.eye(3) if axes is None else axes
    return Solid(
        centre=centre,
        to_local=axes.T / radii[:, None],
        profile=(-1.0, 0.0, 1.0),
        z_range=z_range,
        paint=paint,
        gloss=gloss,
        bound=(centre, float(radii.max())),
        top=float(centre[2] + np.linalg.norm(axes[2] * radii)),
        blocks_sky=float(np.cbrt(radii.prod())),
    )


def frustum(
    centre: Sequence[float], bottom: float, top: float, half_height: float, paint: Paint, gloss: float = 0.1
) -> Solid:
    """An upright cone cut at radii `bottom` and `top`, a cylinder if they are equal; its local frame is not scaled."""
    centre = np.asarray(centre, np.float64)
    middle, slope = 0.5 * (bottom + top), 0.5 * (top - bottom) / half_height
    return Solid(
        centre=centre,
        to_local=np.eye(3),
        profile=(slope * slope, 2.0 * middle * slope, middle * middle),
        z_range=(-half_height, half_height),
        paint=paint,
        gloss=gloss,
        bound=(centre, float(np.hypot(max(bottom, top), half_height))),
        top=float(centre[2] + half_height),
    )


def box(
    centre: Sequence[float], half_sides: Sequence[float], paint: Paint, gloss: float = 0.1, yaw: float = 0.0
) -> Solid:
    """A box turned about z; its local frame is the cube [-1, 1]^3."""
    centre, half_sides = np.asarray(centre, np.float64), np.asarray(half_sides)
    return Solid(
        centre=centre,
        to_local=rotation(yaw).T / half_sides[:, None],
        profile=None,
        z_range=(-1.0, 1.0),
        paint=paint,
        gloss=gloss,
        bound=(centre, float(np.linalg.norm(half_sides))),
        top=float(centre[2] + half_sides[2]),
        blocks_sky=float(np.cbrt(half_sides.prod())),
    )


def _slab(origins: np.ndarray, directions: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """The range of t in which one coordinate [R] of a ray lies between two planes."""
    steps = np.where(np.abs(directions) < _PARALLEL, _PARALLEL, directions)
    t_low, t_high = (low - origins) / steps, (high - origins) / steps
    return np.minimum(t_low, t_high), np.maximum(t_low, t_high)


def crossing(solid: Solid, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of t [...] where rays [..., 3] (broadcast) enter and leave a solid; t_in > t_out for a miss."""
    o_x, o_y, o_z = np.moveaxis((origins - solid.centre) @ solid.to_local.T, -1, 0)
    d_x, d_y, d_z = np.moveaxis(directions @ solid.to_local.T, -1, 0)
    t_in, t_out = _slab(o_z, d_z, *solid.z_range)
    if solid.profile is None:
        for o, d in ((o_x, d_x), (o_y, d_y)):
            low, high = _slab(o, d, -1.0, 1.0)
            t_in, t_out = np.maximum(t_in, low), np.minimum(t_out, high)
        return t_in, t_out
    a, b, c = solid.profile
    # The side is the quadratic  quad t^2 + 2 half t + const = 0.
    quad = d_x * d_x + d_y * d_y - a * d_z * d_z
    quad = np.where(np.abs(quad) < _PARALLEL, _PARALLEL, quad)
    half = o_x * d_x + o_y * d_y - (a * o_z + 0.5 * b) * d_z
    const = o_x * o_x + o_y * o_y - (a * o_z + b) * o_z - c
    discriminant = half * half - quad * const
    root = np.sqrt(np.maximum(discriminant, 0.0)) / np.abs(quad)
    middle = -half / quad
    first, second = middle - root, middle + root
    side_in, side_out = np.maximum(t_in, first), np.minimum(t_out, second)
    if a > 0.0:
        # A ray steeper than a cone is inside it outside the two roots, once in each half of the double cone; the
        # half that counts is the one whose piece overlaps the slab.
        steep, in_first = quad < 0.0, np.minimum(t_out, first) > t_in
        side_in = np.where(steep, np.where(in_first, t_in, np.maximum(t_in, second)), side_in)
        side_out = np.where(steep, np.where(in_first, np.minimum(t_out, first), t_out), side_out)
    return np.where(discriminant < 0.0, np.inf, side_in), side_out


def normals(solid: Solid, local: np.ndarray) -> np.ndarray:
    """Outward unit normals [P, 3] in the world at local surface points [P, 3]."""
    rows = np.arange(len(local))
    if solid.profile is None:
        axis = np.argmax(np.abs(local), axis=-1)
        outward = np.zeros_like(local)
        outward[rows, axis] = np.sign(local[rows, axis])
    else:
        a, b, c = solid.profile
        x, y, z = local.T
        side = np.stack([x, y, -(a * z + 0.5 * b)], axis=-1)
        off_side = np.abs(x * x + y * y - (a * z + b) * z - c) / np.maximum(2 * np.linalg.norm(side, axis=-1), 1e-6)
        distances = np.stack([off_side, np.abs(z - solid.z_range[0]), np.abs(z - solid.z_range[1])])
        nearest = np.argmin(distances, axis=0)
        caps = np.zeros((3, 3))
        caps[1:, 2] = -1.0, 1.0
        outward = np.where((nearest == 0)[:, None], side, caps[nearest])
    world = outward @ solid.to_local
    return world / np.linalg.norm(world, axis=-1, keepdims=True)


def passing(solids: Sequence[Solid], origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest points of rays [R, 3] to the centres of S bounds: their t and squared distance, both [S, R]."""
    middles = np.stack([solid.bound[0] for solid in solids])
    lengths2 = np.einsum("rc,rc->r", directions, directions)
    along = (middles @ directions.T - np.einsum("rc,rc->r", origins, directions)) / lengths2
    apart2 = np.einsum("sc,sc->s", middles, middles)[:, None] - 2.0 * middles @ origins.T
    apart2 += np.einsum("rc,rc->r", origins, origins)
    return along, apart2 - along * along * lengths2


def nearest_hit(solids: Sequence[Solid], origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the first surface on each ray.

    Args:
        solids: the scene.
        origins, directions: [R, 3]; directions of any length.

    Returns:
        t [R], inf for a miss, and the index of the solid [R], -1 for a miss.
    """
    best = np.full(len(directions), np.inf)
    index = np.full(len(directions), -1)
    off_axis2 = passing(solids, origins, directions)[1]
    for number, solid in enumerate(solids):
        near = np.flatnonzero(off_axis2[number] <= solid.bound[1] ** 2 + 1e-6)
        t_in, t_out = crossing(solid, origins[near], directions[near])
        closer = (t_in < t_out) & (t_in > 0.0) & (t_in < best[near])
        best[near[closer]] = t_in[closer]
        index[near[closer]] = number
    return best, index
