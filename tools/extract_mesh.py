"""Makes a mesh with coloured vertices of a trained scene: the surface where density reaches a threshold.

    python tools/extract_mesh.py logs/lego_test --out lego.ply
    python tools/extract_mesh.py --config configs/lego.txt --ft_path model_200000.npy --resolution 400 --out lego.glb
    python tools/extract_mesh.py --config configs/fern.txt --threshold 5 --bounds -1 -1 -1 1 1 0.5 --out fern.obj

RUN is a run's folder, for its args.txt and newest weights, or a file of coarse weights. Every flag of the program may
be given and means what it means there. The fine network's density is evaluated on a grid, and marching cubes finds the
surface. A vertex has the colour that the network shows perpendicular to the surface. Vertices are in the data set's own
coordinates: those of transforms_*.json, of the pose files, or of poses_bounds.npy; what the loader did to them is
undone. The ending of --out, .ply, .obj or .glb, decides the format. Prints the file's path.

Without --bounds the box is what the training cameras see from near to far, shrunk to the part where a coarse grid finds
density. Under NDC the grid lies in NDC: its cells grow with distance, --bounds are in NDC, and the box ends at a depth
of 20 near planes. Points that less than --min_seen of the training cameras see count as empty, because training does
not remove haze there. Parts of the mesh with less than --min_part of its triangles are left out.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from support import commandline, run_loading
from tqdm import tqdm

from nerf_tf.captures.worlds import transform_points
from nerf_tf.data.scene import Scene
from nerf_tf.geometry.depth import ndc_to_world
from nerf_tf.geometry.rays import image_rays
from nerf_tf.memory import planning
from nerf_tf.output import view_files
from nerf_tf.render.passes import FieldFunction
from nerf_tf.storage import atomic

FORMATS = (".ply", ".obj", ".glb")
# The coarse grid that finds the box: points along its longest side, and by how many of its cells the box is widened.
COARSE_POINTS, MARGIN = 64, 2
# NDC reaches to infinity; this t is a depth of 20 near planes, 15 times the nearest bound.
NDC_FAR_T = 0.95
COLOURED_AT_ONCE = 65536  # vertices


class Grid(NamedTuple):
    """A grid of points `origin + step * (i, j, k)` for i, j, k below `shape`."""

    origin: np.ndarray
    step: float
    shape: tuple[int, int, int]


class Surface(NamedTuple):
    """A mesh.

    Attributes:
        points: [V, 3] its vertices in the grid's coordinates.
        vertices, normals: [V, 3] the same in the data set's own coordinates, and the unit normals there, outward.
        faces: [F, 3] indices of vertices, counter-clockwise from outside.
    """

    points: np.ndarray
    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray


def make_grid(low: np.ndarray, high: np.ndarray, resolution: int) -> Grid:
    """The grid of cubic cells over a box, with `resolution` points along the longest side."""
    step = float((high - low).max() / (resolution - 1))
    return Grid(low, step, tuple(int(n) for n in np.ceil((high - low) / step - 1e-6).astype(int) + 1))


class Space:
    """The coordinates of the grid: the data set's own or, for a scene in NDC, NDC.

    `min_seen` is the fraction of the training cameras that must see a point.
    """

    def __init__(self, scene: Scene, min_seen: float):
        self.scene = scene
        self._min_seen = min_seen
        self._from_dataset = np.linalg.inv(scene.to_dataset)

    def to_field(self, points: np.ndarray) -> np.ndarray:
        """Converts points [..., 3] of the grid to the networks' coordinates."""
        return points if self.scene.ndc else transform_points(self._from_dataset, points)

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """Converts points [..., 3] of the grid to the world of the cameras."""
        return (
            ndc_to_world(self.scene.cameras[0], points)
            if self.scene.ndc
            else transform_points(self._from_dataset, points)
        )

    def to_dataset(self, points: np.ndarray) -> np.ndarray:
        """Converts points [..., 3] of the grid to the data set's own coordinates."""
        return transform_points(self.scene.to_dataset, self.to_world(points)) if self.scene.ndc else points

    def viewdirs(self, normals: np.ndarray) -> np.ndarray:
        """Unit view directions [V, 3] perpendicular to surfaces with these normals in the data set."""
        directions = -normals @ self.scene.to_dataset[:3, :3]
        return directions / np.maximum(np.linalg.norm(directions, axis=-1, keepdims=True), 1e-12)

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner of the box that the training cameras see, in the grid's coordinates."""
        scene, ends = self.scene, []
        far = min(scene.far, NDC_FAR_T) if scene.ndc else scene.far
        for view in scene.i_train:
            camera = scene.cameras[view]
            last_row, right = (camera.height - 1) * camera.width, camera.width - 1
            corners = tf.constant([0, right, last_row, last_row + right])
            rays = image_rays(camera, scene.poses[view], scene.near, far, scene.ndc, corners)
            ends += [(rays.origins + t * rays.directions).numpy() for t in (rays.near, rays.far)]
        ends = np.concatenate(ends)
        ends = ends if scene.ndc else transform_points(scene.to_dataset, ends)
        return ends.min(axis=0), ends.max(axis=0)

    def seen(self, points: np.ndarray) -> np.ndarray:
        """Whether enough training cameras see points [P, 3] of the grid between near and far: [P]."""
        scene, world = self.scene, self.to_world(points)
        near, far = (0.0, np.inf) if scene.ndc else (scene.near, scene.far)
        missing = np.full(len(points), max(1, math.ceil(self._min_seen * len(scene.i_train))))
        for view in scene.i_train:
            asked = np.flatnonzero(missing > 0)
            camera, c2w = scene.cameras[view], scene.poses[view]
            row, col, z = camera.project(c2w, world[asked])
            inside = (col >= 0) & (col <= camera.width) & (row >= 0) & (row <= camera.height)
            missing[asked] -= inside & (-z >= near) & (-z <= far)
        return missing == 0


def sample_density(
    field: FieldFunction, grid: Grid, space: Space, threshold: float, description: str = "density"
) -> np.ndarray:
    """Evaluates density [grid.shape], a slab of one x at a time; 0 at dense points that few cameras see."""
    viewdirs = tf.zeros([grid.shape[1], 3])  # density does not depend on them

    @tf.function(input_signature=[tf.TensorSpec([grid.shape[1], grid.shape[2], 3], tf.float32)])
    def density_of(points: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(field(points, viewdirs, np.float32(np.inf))[..., 3])  # inf: colours are not computed

    _, y, z = (start + grid.step * np.arange(n) for start, n in zip(grid.origin, grid.shape, strict=True))
    density = np.empty(grid.shape, np.float32)
    for i in tqdm(range(grid.shape[0]), desc=description, unit="slab", dynamic_ncols=True):
        x = grid.origin[0] + grid.step * i
        points = np.stack(np.broadcast_arrays(x, y[:, None], z[None]), axis=-1)
        density[i] = density_of(tf.constant(space.to_field(points), tf.float32))
        dense = density[i] >= threshold
        density[i][dense] *= space.seen(points[dense])
    return density


def occupied_box(density: np.ndarray, grid: Grid, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners of the box around dense points, with a margin; of the whole grid if none is dense."""
    dense = np.argwhere(density >= threshold)
    last = np.array(grid.shape) - 1
    low, high = (dense.min(axis=0), dense.max(axis=0)) if len(dense) else (np.zeros(3), last)
    low, high = np.maximum(low - MARGIN, 0), np.minimum(high + MARGIN, last)
    return grid.origin + grid.step * low, grid.origin + grid.step * high


def large_parts(faces: np.ndarray, vertices: int, min_part: float) -> np.ndarray:
    """Whether faces [F, 3] belong to a connected part with at least `min_part` of all faces: [F]."""
    import trimesh

    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    part_of_face = trimesh.graph.connected_component_labels(edges, vertices)[faces[:, 0]]
    return np.bincount(part_of_face)[part_of_face] >= min_part * len(faces)


def find_surface(density: np.ndarray, grid: Grid, space: Space, threshold: float, min_part: float = 0.0) -> Surface:
    """Finds the surface where density passes the threshold, by marching cubes.

    Args:
        density: [grid.shape].
        grid, space: the points of `density`, and their coordinates.
        threshold: density at the surface.
        min_part: connected parts with less than this fraction of all triangles are left out.

    Raises:
        ValueError: density does not pass the threshold.
    """
    import trimesh
    from skimage.measure import marching_cubes

    if not density.min() < threshold < density.max():
        raise ValueError(
            f"no surface at --threshold {threshold:g}: density in the box runs from {density.min():g} to "
            f"{density.max():g}; give a threshold in between, or other --bounds"
        )
    # Density jumps by hundreds within a cell, which would put the surface at the cell's empty side. Where density is
    # clipped at twice the threshold, a jump has its surface half way.
    density = np.minimum(density, 2 * threshold)
    indices, faces, _, _ = marching_cubes(density, threshold, gradient_direction="ascent")
    if min_part > 0:
        kept, faces = np.unique(faces[large_parts(faces, len(indices), min_part)], return_inverse=True)
        indices, faces = indices[kept], faces.reshape(-1, 3)
    if space.scene.ndc:
        faces = faces[:, ::-1]  # z changes its sign on the way out of NDC
    points = grid.origin + grid.step * indices.astype(np.float64)
    vertices = space.to_dataset(points)
    normals = trimesh.Trimesh(vertices, faces, process=False).vertex_normals
    return Surface(points, vertices, np.asarray(normals), faces)


def vertex_colours(field: FieldFunction, surface: Surface, space: Space) -> np.ndarray:
    """8-bit colours [V, 3] of the vertices, each seen against its normal."""

    @tf.function(input_signature=[tf.TensorSpec([None, 1, 3], tf.float32), tf.TensorSpec([None, 3], tf.float32)])
    def colour_of(points: tf.Tensor, viewdirs: tf.Tensor) -> tf.Tensor:
        return tf.sigmoid(field(points, viewdirs, None)[:, 0, :3])

    points, viewdirs = space.to_field(surface.points), space.viewdirs(surface.normals)
    colours = []
    for first in tqdm(range(0, len(points), COLOURED_AT_ONCE), desc="colour", unit="batch", dynamic_ncols=True):
        part = slice(first, first + COLOURED_AT_ONCE)
        colours.append(colour_of(points[part, None], viewdirs[part]).numpy())
    return view_files.to_8bit(np.concatenate(colours))


def write_mesh(path: Path, surface: Surface, colours: np.ndarray) -> None:
    """Writes the mesh in the format that the file's ending names."""
    import trimesh

    mesh = trimesh.Trimesh(surface.vertices, surface.faces, vertex_colors=colours, process=False)
    with atomic.complete_file(path) as temporary:
        mesh.export(temporary, file_type=path.suffix[1:])


def extract(run: run_loading.LoadedRun, args: argparse.Namespace) -> Surface:
    """Makes the mesh of a run as the arguments say, and writes it."""
    space = Space(run.scene, args.min_seen)
    if args.bounds is None:
        coarse = make_grid(*space.box(), COARSE_POINTS)
        low, high = occupied_box(
            sample_density(run.field, coarse, space, args.threshold, "coarse density"), coarse, args.threshold
        )
    else:
        low, high = np.reshape(args.bounds, [2, 3])
    grid = make_grid(low, high, args.resolution)
    density = sample_density(run.field, grid, space, args.threshold)
    surface = find_surface(density, grid, space, args.threshold, args.min_part)
    write_mesh(args.out, surface, vertex_colours(run.field, surface, space))
    return surface


def _arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = commandline.Parser("extract_mesh", __doc__, "%(prog)s [RUN] [options] [flags of the program]")
    parser.add_argument("--resolution", type=int, default=256, help="grid points along the longest side (default: 256)")
    parser.add_argument(
        "--threshold",
        type=float,
        default=25.0,
        help="density at the surface, per unit of the loaded world (default: 25)",
    )
    names = ("X0", "Y0", "Z0", "X1", "Y1", "Z1")
    parser.add_argument("--bounds", type=float, nargs=6, metavar=names, help="corners of the box that is searched")
    parser.add_argument(
        "--min_seen",
        type=float,
        default=0.5,
        help="fraction of the training cameras that must see a point; lower it where cameras see different parts "
        "(default: 0.5)",
    )
    parser.add_argument(
        "--min_part",
        type=float,
        default=0.0,
        help="leave out connected parts with less than this part of all triangles; 0.01 drops floaters (default: 0)",
    )
    parser.add_argument("--out", type=Path, default=Path("mesh.ply"), help="the file (default: mesh.ply)")
    args, rest = parser.parse_known_args(argv)
    if args.out.suffix not in FORMATS:
        parser.error(f"--out {args.out}: give it one of the endings {', '.join(FORMATS)}")
    if args.resolution < 2:
        parser.error(f"--resolution {args.resolution}: at least 2")
    if not args.threshold > 0:
        parser.error(f"--threshold {args.threshold:g}: above 0, as empty space has density 0")
    if not 0 <= args.min_seen <= 1:
        parser.error(f"--min_seen {args.min_seen:g}: from 0 to 1")
    if not 0 <= args.min_part <= 0.5:
        parser.error(f"--min_part {args.min_part:g}: from 0 to 0.5")
    if args.bounds and not all(low < high for low, high in zip(args.bounds[:3], args.bounds[3:], strict=True)):
        parser.error("--bounds: expected the lower corner, X0 Y0 Z0, before the higher one, X1 Y1 Z1")
    return args, rest


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args, program_flags = _arguments(argv)
    try:
        import skimage.measure  # noqa: F401  fails now rather than after minutes
        import trimesh  # noqa: F401
    except ImportError:
        return commandline.fail("extract_mesh", "needs scikit-image and trimesh: pip install -e '.[mesh]'")
    try:
        surface = extract(run_loading.load_run(program_flags), args)
    except (ValueError, OSError, planning.OutOfMemory) as error:
        return commandline.fail("extract_mesh", error)
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        reason = f"out of memory ({error!s:.200}): lower --resolution or --netchunk"
        return commandline.fail("extract_mesh", reason)
    low, high = (
        " ".join(f"{x:.3g}" for x in corner(axis=0)) for corner in (surface.vertices.min, surface.vertices.max)
    )
    print(f"{len(surface.vertices)} vertices, {len(surface.faces)} faces, from {low} to {high}", file=sys.stderr)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
