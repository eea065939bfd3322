"""Draws coloured meshes and point clouds from one camera, side by side, without a display.

    python tools/plot_geometry.py lego.ply points3d.ply --out geometry.png
    python tools/plot_geometry.py fern.glb --eye 0 0 2 --at 0 0 -4 --up 0 1 0 --out fern.png

Each file (.ply, .obj, .glb) is one panel. Meshes have their vertices' colours, darker where they turn away from the
camera. By default the camera looks from one side and above (z up), from where it sees everything. Prints the picture's
path.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from support import commandline

from nerf_tf.geometry import poses
from nerf_tf.geometry.camera import Camera
from nerf_tf.output import figures

SIDE = 480  # pixels of a panel
ANGLE = np.deg2rad(40.0)  # of view
DOTS_AT_ONCE, DOTS_PER_PIXEL, MOST_ROUNDS = 1_000_000, 2, 20  # on a mesh
MESH_DOT, POINT_DOT = 2, 3  # pixels along the side of a dot on a mesh, and of a point of a cloud
FACING = 0.35  # brightness of a surface seen edge on


def read(path: Path):
    """Reads a mesh or point cloud as a trimesh object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither.
    """
    import trimesh

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        loaded = trimesh.load(path, process=False, **({"force": "mesh"} if path.suffix == ".glb" else {}))
    except Exception as error:  # trimesh's readers raise exceptions of many kinds
        raise ValueError(f"{path}: neither a mesh nor points that can be read ({error})") from error
    if isinstance(loaded, trimesh.PointCloud) or (isinstance(loaded, trimesh.Trimesh) and len(loaded.faces)):
        return loaded
    raise ValueError(f"{path}: holds neither a mesh nor points")


class Canvas:
    """A white image [side, side, 3] to draw dots on; nearer dots hide farther ones.

    Attributes:
        camera, c2w: the camera and its pose [3, 4].
        image: the picture so far.
    """

    def __init__(self, side: int, c2w: np.ndarray):
        self.camera, self.c2w = Camera.centred(side, side, side / 2 / np.tan(ANGLE / 2)), c2w
        self.image, self._nearest = np.ones([side, side, 3]), np.full([side, side], -np.inf)

    def draw(self, points: np.ndarray, colours: np.ndarray, dot: int) -> None:
        """Draws points [P, 3] in their colours [P, 3], each a square of `dot` pixels."""
        rows, cols, depths = self.camera.project(self.c2w, points)
        for i in range(dot):
            for j in range(dot):
                row, col = np.floor(rows + i - dot // 2), np.floor(cols + j - dot // 2)
                inside = (depths < 0) & (row >= 0) & (row < len(self.image)) & (col >= 0) & (col < len(self.image))
                row, col, z = row[inside].astype(int), col[inside].astype(int), depths[inside]
                np.maximum.at(self._nearest, (row, col), z)
                front = z == self._nearest[row, col]
                self.image[row[front], col[front]] = colours[inside][front]


def picture_of_points(cloud, c2w: np.ndarray) -> np.ndarray:
    """An image [SIDE, SIDE, 3] of a point cloud."""
    canvas = Canvas(SIDE, c2w)
    canvas.draw(cloud.vertices, cloud.colors[:, :3] / 255, POINT_DOT)
    return canvas.image


def picture_of_mesh(mesh, c2w: np.ndarray) -> np.ndarray:
    """An image [SIDE, SIDE, 3] of a mesh: so many dots on its surface that it looks closed."""
    import trimesh

    # Drawn at twice the size and averaged, the dots make smooth edges.
    eye, canvas = c2w[:, 3], Canvas(2 * SIDE, c2w)
    rows, cols, z = canvas.camera.project(c2w, mesh.triangles_center)
    visible = (z < 0) & (abs(rows - SIDE) < 1.1 * SIDE) & (abs(cols - SIDE) < 1.1 * SIDE)
    pixels = visible * mesh.area_faces * (canvas.camera.fx / z) ** 2  # were they all to face the camera
    for seed in range(int(np.clip(DOTS_PER_PIXEL * pixels.sum() / DOTS_AT_ONCE, 1, MOST_ROUNDS))):
        points, faces = trimesh.sample.sample_surface(mesh, DOTS_AT_ONCE, face_weight=pixels, seed=seed)
        corners = trimesh.triangles.points_to_barycentric(mesh.triangles[faces], points)
        colours = np.einsum("pc,pcx->px", corners, mesh.visual.vertex_colors[mesh.faces[faces], :3] / 255)
        normals = poses.normalise(np.einsum("pc,pcx->px", corners, mesh.vertex_normals[mesh.faces[faces]]))
        facing = np.abs(np.sum(normals * poses.normalise(eye - points), axis=-1, keepdims=True))
        canvas.draw(points, colours * (FACING + (1 - FACING) * facing), MESH_DOT)
    return canvas.image.reshape(SIDE, 2, SIDE, 2, 3).mean(axis=(1, 3))


def view_of(points: np.ndarray, args: argparse.Namespace) -> np.ndarray:
    """The camera's pose [3, 4]: as the arguments say, or from a side and above, where it sees all points."""
    low, high = np.percentile(points, [1, 99], axis=0)
    at = (low + high) / 2 if args.at is None else np.array(args.at)
    if args.eye is None:
        away = poses.normalise(np.array([1.0, 0.55, 0.6]))
        eye = at + away * 0.46 * np.linalg.norm(high - low) / np.tan(ANGLE / 2)
    else:
        eye = np.array(args.eye)
    return poses.look_at(eye - at, np.array(args.up), eye)


def draw(paths: list[Path], args: argparse.Namespace):
    """The figure: a panel for each file, all from the camera that fits the first."""
    figure = figures.new_figure(4.2 * len(paths), 4.4)
    loaded = [read(path) for path in paths]
    c2w = view_of(loaded[0].vertices, args)
    panels = figure.subplots(1, len(paths), squeeze=False)[0]
    for path, geometry, axes in zip(paths, loaded, panels, strict=True):
        if hasattr(geometry, "faces"):
            image, contents = picture_of_mesh(geometry, c2w), f"{len(geometry.faces):,} triangles"
        else:
            image, contents = picture_of_points(geometry, c2w), f"{len(geometry.vertices):,} points"
        axes.imshow(image)
        axes.set_axis_off()
        axes.set_title(f"{path.name}: {contents}", color=figures.INK)
    figure.tight_layout()
    return figure


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = commandline.Parser("plot_geometry", __doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help=".ply, .obj or .glb")
    for name, default, meaning in (
        ("eye", None, "the camera's place"),
        ("at", None, "what it looks at; the middle if not given"),
        ("up", [0.0, 0.0, 1.0], "what is upwards (default: 0 0 1)"),
    ):
        parser.add_argument(f"--{name}", type=float, nargs=3, metavar=("X", "Y", "Z"), default=default, help=meaning)
    parser.add_argument("--out", type=Path, default=Path("geometry.png"), help="the picture (default: geometry.png)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _arguments(argv)
    try:
        figures.save(draw(args.files, args), args.out)
    except ImportError:
        return commandline.fail("plot_geometry", "needs trimesh: pip install -e '.[mesh]'")
    except (ValueError, OSError) as error:
        return commandline.fail("plot_geometry", error)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
