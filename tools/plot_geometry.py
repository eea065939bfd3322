"""Draws coloured meshes and point clouds from one camera, side by side, with no display and no graphics card.

    python tools/plot_geometry.py lego.ply points3d.ply --out geometry.png
    python tools/plot_geometry.py fern.glb --eye 0 0 2 --at 0 0 -4 --up 0 1 0 --out fern.png

Each file (.ply, .obj, .glb) is one panel: points as they are, meshes in their vertices' colours, darker where they turn
away from the camera. Unless told otherwise the camera stands off to one side and above (z up), at a distance from which
the whole is in view. Prints the picture's path.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import drawing
import numpy as np

from nerf_tf.geometry import poses
from nerf_tf.geometry.camera import Camera
from nerf_tf.geometry.depth import transform

SIDE = 480  # pixels of a panel
ANGLE = np.deg2rad(40.0)  # of view
# So many dots on a mesh's surface make it look closed; drawn at twice the size and averaged they make smooth edges.
SURFACE_POINTS, SURFACE_DOT = 2_000_000, 2
POINT_DOT = 3  # pixels of a point of a cloud
FACING = 0.35  # brightness of a surface seen edge on


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, str]:
    """Points [P, 3], their colours [P, 3] in [0, 1], normals [P, 3] or None, and what the file holds in words.

    A mesh becomes points spread over its surface.

    Raises:
        ValueError: it is neither a mesh nor points.
    """
    import trimesh

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        loaded = trimesh.load(path, process=False, **({"force": "mesh"} if path.suffix == ".glb" else {}))
    except Exception as error:  # trimesh's readers raise whatever they stumble over
        raise ValueError(f"{path}: neither a mesh nor points that can be read ({error})") from error
    if isinstance(loaded, trimesh.PointCloud):
        return loaded.vertices, loaded.colors[:, :3] / 255, None, f"{len(loaded.vertices):,} points"
    if not isinstance(loaded, trimesh.Trimesh) or not len(loaded.faces):
        raise ValueError(f"{path}: holds neither a mesh nor points")
    points, faces = trimesh.sample.sample_surface(loaded, SURFACE_POINTS, seed=0)
    corners = trimesh.triangles.points_to_barycentric(loaded.triangles[faces], points)
    colours = np.einsum("pc,pcx->px", corners, loaded.visual.vertex_colors[loaded.faces[faces], :3] / 255)
    return points, colours, loaded.face_normals[faces], f"{len(loaded.faces):,} triangles"


def splat(camera: Camera, c2w: np.ndarray, points: np.ndarray, colours: np.ndarray, dot: int) -> np.ndarray:
    """An image [H, W, 3] of points [P, 3] on white, each a square of `dot` pixels; nearer ones hide farther ones."""
    x, y, z = transform(np.concatenate([poses.invert(c2w), [[0, 0, 0, 1]]]), points).T
    order = np.argsort(z)  # farthest first: z points backwards
    order = order[z[order] < 0]
    cols = camera.cx - camera.fx * x[order] / z[order]
    rows = camera.cy + camera.fy * y[order] / z[order]
    image, nearest = np.ones([camera.height, camera.width, 3]), np.full([camera.height, camera.width], -np.inf)
    for i in range(dot):
        for j in range(dot):
            row, col = np.floor(rows + i - dot // 2).astype(int), np.floor(cols + j - dot // 2).astype(int)
            inside = (row >= 0) & (row < camera.height) & (col >= 0) & (col < camera.width)
            row, col, chosen = row[inside], col[inside], order[inside]
            np.maximum.at(nearest, (row, col), z[chosen])
            front = z[chosen] == nearest[row, col]
            image[row[front], col[front]] = colours[chosen[front]]
    return image


def view_of(points: np.ndarray, args: argparse.Namespace) -> np.ndarray:
    """The camera's pose [3, 4]: as the arguments say, or such that it sees all points from the side and from above."""
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
    figure = drawing.new_figure(4.2 * len(paths), 4.4)
    c2w = None
    for path, axes in zip(paths, figure.subplots(1, len(paths), squeeze=False)[0], strict=True):
        points, colours, normals, contents = read(path)
        c2w = view_of(points, args) if c2w is None else c2w
        if normals is None:
            image = splat(camera_of(SIDE), c2w, points, colours, POINT_DOT)
        else:
            facing = np.abs(np.sum(normals * poses.normalise(c2w[:, 3] - points), axis=-1, keepdims=True))
            large = splat(camera_of(2 * SIDE), c2w, points, colours * (FACING + (1 - FACING) * facing), SURFACE_DOT)
            image = large.reshape(SIDE, 2, SIDE, 2, 3).mean(axis=(1, 3))
        axes.imshow(image)
        axes.set_axis_off()
        axes.set_title(f"{path.name}: {contents}", color=drawing.INK)
    figure.tight_layout()
    return figure


def camera_of(side: int) -> Camera:
    """A camera with a square image of so many pixels."""
    return Camera.centred(side, side, side / 2 / np.tan(ANGLE / 2))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        drawing.save(draw(args.files, args), args.out)
    except ImportError:
        print("plot_geometry: needs trimesh: pip install -e '.[mesh]'", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"plot_geometry: {error}", file=sys.stderr)
        return 1
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
