"""Shows what a loader makes of a scene, and what is wrong with it, before a run is trained on it.

    python tools/check_scene.py data/room --factor 4
    python tools/check_scene.py data/nerf_synthetic/lego --config configs/lego.txt --out lego.png

SCENE is the scene's folder; --config, --factor, --no_ndc, --spherify and all other flags of the program mean what they
mean for a run. What --dataset_type, --shape and --white_bkgd are is guessed from the folder where they are not given,
and printed.

Prints a row for each photo: the range of depths that it shows, the share of the scene's points inside its frustum, its
exposure in stops over the median photo's, its sharpness over the median. Then a verdict on each topic, with what to do.
The picture, --out, has the same, with the cameras, what they see, and the photos; its path is printed last. The points
are those of COLMAP's model in SCENE/sparse/0, or what else near and far of transforms.json may follow from, if they are
there; otherwise random ones of the volume that the cameras see.

The exit code is 0 where nothing is wrong, 1 where there is a problem (or no scene that can be loaded), and 2 for a
mistake in the flags.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from support import commandline
from support.camera_drawing import add_space, draw_cameras, draw_frusta, frustum

from nerf_tf import build
from nerf_tf.captures import scene_points, transforms
from nerf_tf.captures.scene_points import ScenePoints, depths_in_images
from nerf_tf.captures.worlds import change_world, transform_points
from nerf_tf.data.scene import Scene
from nerf_tf.output import figures, view_files
from nerf_tf.safety import capture_checks, dataset_types, photo_checks, scene_checks
from nerf_tf.settings import parsing
from nerf_tf.settings.settings import Settings
from nerf_tf.storage import image_reader, sparse_points

# What is drawn: points, frusta from near to far, photos and columns of them, pixels of a photo's longer side, about.
DRAWN_POINTS, DRAWN_FRUSTA, DRAWN_PHOTOS, COLUMNS, THUMBNAIL = 2000, 6, 40, 10, 160
# Per cent of the points' depths that the panel of the frusta is large enough for.
SHOWN_DEPTHS = (1.0, 95.0)
LINE_HEIGHT, WRAPPED_AT = 0.19, 165  # inches and characters of the verdicts in the picture


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What was found on one topic, and a line for each problem with it, none if all is well."""

    topic: str
    finding: str
    problems: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Lines of the table."""
        kind = "problem" if self.problems else "ok"
        return [f"{kind:<9}{self.topic:<11}{self.finding}", *(f"{'':20}{problem}" for problem in self.problems)]


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
    """What was found in a scene.

    Attributes:
        scene: as loaded.
        facts: lines about it, by their labels.
        points: [P, 3] in the scene's world.
        shares: [N] share of the points in each view's frustum.
        stops: [N] exposure of each photo over the median photo's; NaN where nothing tells.
        sharpness: [N] of each photo over the median.
        verdicts: one for each topic.
    """

    scene: Scene
    facts: dict[str, str]
    points: np.ndarray
    shares: np.ndarray
    stops: np.ndarray
    sharpness: np.ndarray
    verdicts: list[Verdict]

    @property
    def names(self) -> list[str]:
        """Names of the photos."""
        return photo_names(self.scene)

    @property
    def is_good(self) -> bool:
        """Whether there is no problem."""
        return not any(verdict.problems for verdict in self.verdicts)

    def odd_photos(self) -> list[int]:
        """Photos that a problem names."""
        problems = " ".join(problem for verdict in self.verdicts for problem in verdict.problems)
        return [i for i, name in enumerate(self.names) if name in problems]


def guess_flags(folder: Path, settings: Settings) -> list[str]:
    """Flags that were not given and that a scene of the kind in the folder needs.

    Raises:
        FileNotFoundError: there is no such folder, or no scene in it.
    """
    given = settings.from_command_line | settings.from_file
    kind = settings.dataset_type if "dataset_type" in given else guess_kind(folder)
    flags = [] if "dataset_type" in given else [f"--dataset_type={kind}"]
    shapes = [path.parent.name for path in sorted(folder.glob("train/*/pose"))]
    if kind == "deepvoxels" and "shape" not in given and settings.shape not in shapes and len(shapes) == 1:
        flags.append(f"--shape={shapes[0]}")
    if kind == "blender" and "white_bkgd" not in given and _is_transparent(folder):
        flags.append("--white_bkgd")
    return flags


def guess_kind(folder: Path) -> str:
    """The dataset_type of the scene in a folder; errors as `guess_flags`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; name the folder of a scene")
    if found := dataset_types.find_types(folder):
        return found[0]
    raise FileNotFoundError(
        f"{folder}: holds no scene (looked for poses_bounds.npy, transforms.json, transforms_train.json and "
        "train/*/pose); make one of photos with tools/imgs2poses.py"
    )


def _is_transparent(folder: Path) -> bool:
    """Whether a Blender scene's first training image has transparent pixels; False if it is unreadable."""
    first = next(iter(sorted(folder.glob("train/*.png"))), None)
    try:
        image = None if first is None else image_reader.read_image(first)
    except ValueError:  # the loader will say so
        return False
    return image is not None and image.shape[-1] == 4 and bool(image[..., 3].min() < 1.0)


@contextlib.contextmanager
def warnings_of_loading() -> Iterator[list[str]]:
    """Collects what the package warns of, instead of showing it."""
    found: list[str] = []
    handler, logger = logging.Handler(logging.WARNING), logging.getLogger("nerf_tf")
    handler.emit = lambda record: found.append(record.getMessage())
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def inspect(settings: Settings) -> Inspection:
    """Loads the scene that the settings name, and checks it.

    Raises:
        ValueError, OSError: it cannot be loaded.
    """
    with warnings_of_loading() as loading:
        scene = build.read_scene(settings)
        found, source = load_points(scene, settings)
    sparse, reprojection = None if found is None else found.positions, load_reprojection(scene, settings, found)
    points = capture_checks.sample_points(scene) if sparse is None else sparse
    shares = capture_checks.shares_in_frusta(scene, points, sampled=sparse is None)
    photos = [scene.photo(i) for i in range(len(scene.images))]
    stops = photo_checks.brightness_stops(photos) if sparse is None else photo_checks.exposure_of_points(scene, sparse)
    sharpness = photo_checks.relative_sharpness(photos)
    verdicts = judge(settings, scene, sparse, reprojection, shares, stops, sharpness, loading)
    return Inspection(scene, facts(settings, scene, source), points, shares, stops, sharpness, verdicts)


def load_points(scene: Scene, settings: Settings) -> tuple[ScenePoints | None, str]:
    """Loads the scene's sparse points, None if it has none, in its world; and says where points are from.

    Raises:
        ValueError: the file that transforms.json names is damaged.
    """
    folder, in_dataset = Path(settings.datadir), change_world(scene.to_dataset, scene.poses)
    meta = transforms.read_meta(folder) if settings.dataset_type == "transforms" else None
    found = scene_points.find_points(folder, scene.cameras, in_dataset, meta)
    if found is None:
        there = [name for name in scene_points.MODELS if (folder / name).is_dir()]
        of_another = f"; those of {there[0]} are of another world" if there else ""
        return None, f"random ones of what the cameras see from near to far{of_another}"
    moved = transform_points(np.linalg.inv(scene.to_dataset), found.positions)
    return found._replace(positions=moved), f"{len(moved)} of {found.source}"


def load_reprojection(
    scene: Scene, settings: Settings, found: ScenePoints | None
) -> capture_checks.Reprojection | None:
    """How the cameras agree with where photos show the points; None if the model does not tell.

    Raises:
        ValueError: a file of the model is damaged.
    """
    if found is None or found.model is None:
        return None
    try:
        sightings = sparse_points.read_sightings(found.model)
    except FileNotFoundError:  # the model has points only
        return None
    if settings.field == "hash_grid":  # whose rays go through pixels' middles, and COLMAP counts from their corners
        scene = dataclasses.replace(scene, cameras=tuple(camera.through_pixel_corners() for camera in scene.cameras))
    return capture_checks.reproject(scene, sightings, np.linalg.inv(scene.to_dataset) @ found.from_model)


def facts(settings: Settings, scene: Scene, source: str) -> dict[str, str]:
    """Lines about a scene by their labels."""
    height, width = scene.images.shape[1:3]
    held_out = len(np.union1d(scene.i_val, scene.i_test))
    focals = [focal for camera in scene.cameras for focal in (camera.fx, camera.fy)]
    focal = f"{min(focals):.4g}" if np.ptp(focals) < 0.1 else f"{min(focals):.4g} to {max(focals):.4g}"
    first = scene.cameras[0]
    across, down = (np.degrees(2 * np.arctan(0.5 * side / f)) for side, f in ((width, first.fx), (height, first.fy)))
    flags = [f"--{name}" for name in ("no_ndc", "spherify", "white_bkgd", "half_res") if getattr(settings, name)]
    return {
        "scene": " ".join([settings.datadir, f"--dataset_type {settings.dataset_type}", *flags]),
        "photos": f"{len(scene.images)} of {width}x{height}: {len(scene.i_train)} to train on, {held_out} held out",
        "camera": f"focal length {focal} pixels, field of view {across:.0f} x {down:.0f} degrees",
        "unit": f"{scene.unit:.4g} of the data set's",
        "points": source,
    }


def judge(
    settings: Settings,
    scene: Scene,
    sparse: np.ndarray | None,
    reprojection: capture_checks.Reprojection | None,
    shares: np.ndarray,
    stops: np.ndarray,
    sharpness: np.ndarray,
    loading: Sequence[str],
) -> list[Verdict]:
    """The verdict on each topic; `loading` is what the loader warned of, for the others see `Inspection`."""
    capture, names = capture_checks.find_capture(scene.cameras, scene.poses), photo_names(scene)
    flags = ""
    if settings.dataset_type == "llff":
        flags = f"; {' '.join(capture.flags) or 'NDC, the default'}"
    error = capture_checks.rotation_errors(scene.poses).max()
    angle = capture_checks.parallax(scene, sparse)
    seen = "what the cameras look at is not known" if angle is None else f"{angle:.0f} degrees of parallax"
    least = int(np.argmin(sharpness))
    verdicts = [
        Verdict("number", f"{len(names)} photos", tuple(capture_checks.check_number(scene))),
        Verdict(
            "capture",
            capture.describe() + flags,
            (*scene_checks.check_ndc(scene), *capture_checks.check_capture(scene)),
        ),
        Verdict("rotations", f"{error:.1g} from a rotation at most", tuple(capture_checks.check_rotations(scene))),
        Verdict(
            "bounds",
            _bounds_finding(scene, sparse),
            (
                *scene_checks.check_range(scene),
                *scene_checks.check_bounds(scene, settings.lindisp),
                *([] if sparse is None else capture_checks.check_point_range(scene, sparse)),
            ),
        ),
        Verdict(
            "cameras",
            f"{seen}; each sees {100 * shares.min():.0f} to {100 * shares.max():.0f} % of the points",
            (
                *scene_checks.check_cameras(scene),
                *capture_checks.check_parallax(scene, sparse),
                *capture_checks.check_frusta(scene, shares),
            ),
        ),
        *judge_points(scene, reprojection),
        judge_exposure(stops, names, comparable=sparse is not None or capture.kind == capture_checks.FORWARD),
        Verdict(
            "sharpness",
            f"least {sharpness[least]:.2f} of the median ({names[least]})",
            tuple(photo_checks.check_sharpness(sharpness, names)),
        ),
    ]
    told = {problem for verdict in verdicts for problem in verdict.problems}
    others = [w for w in scene_checks.check_scene(scene, settings.datadir, settings.lindisp) if w not in told]
    return [*verdicts, Verdict("files", "photos and poses fit", (*loading, *others))]


def judge_points(scene: Scene, reprojection: capture_checks.Reprojection | None) -> list[Verdict]:
    """The verdict on where photos show the points of COLMAP's model; none where it does not tell."""
    if reprojection is None:
        return []
    counts, off = reprojection.counts[reprojection.counts > 0], np.nanmedian(reprojection.errors)
    return [
        Verdict(
            "points",
            f"a photo shows {counts.min()} to {counts.max()} of them, {off:.1f} pixels from where its camera has them",
            (
                *capture_checks.check_sightings(reprojection),
                *capture_checks.check_reprojection(scene, reprojection),
            ),
        )
    ]


def judge_exposure(stops: np.ndarray, names: Sequence[str], comparable: bool) -> Verdict:
    """The verdict on exposure; `comparable` where the stops are of the same things in all photos."""
    known = stops[np.isfinite(stops)]
    if not known.size:
        return Verdict("exposure", "not known: the photos show too few of the points")
    between = f"{np.ptp(known):.1f} stops between any two photos"
    if not comparable:
        return Verdict("exposure", f"{between}, which show different things; COLMAP's points would tell more")
    drift, _ = photo_checks.exposure_drift(known)
    return Verdict(
        "exposure",
        f"{drift + 0.0:+.1f} stops from the first to the last third, {between}",
        tuple(photo_checks.check_exposure(stops, names)),
    )


def photo_names(scene: Scene) -> list[str]:
    """Names of the photos, or of views where the data set has no names."""
    return list(scene.names) or [f"view {i}" for i in range(len(scene.images))]


def _bounds_finding(scene: Scene, sparse: np.ndarray | None) -> str:
    text = "from NDC's near plane, at 1" if scene.ndc else f"near {scene.near:.3g} and far {scene.far:.3g}"
    if scene.bounds is not None:
        text += f"; the photos show {scene.bounds[:, 0].min():.3g} to {scene.bounds[:, 1].max():.3g}"
    if sparse is not None:
        depths = depths_in_images(scene.cameras, scene.poses, sparse)
        text += f"; half of the points lie within {np.nanmedian(depths):.3g}"
    return text


def table(inspection: Inspection) -> str:
    """The text that is printed."""
    scene, names = inspection.scene, inspection.names
    width = max(len(name) for name in names)
    lines = [f"{label:<9}{text}" for label, text in inspection.facts.items()]
    lines += ["", f"{'photo':<{width}}{'near':>9}{'far':>9}{'points':>9}{'exposure':>10}{'sharpness':>11}"]
    for i, name in enumerate(names):
        near, far = capture_checks.depth_range(scene, i)
        lines.append(
            f"{name:<{width}}{near:>9.3g}{far:>9.3g}{100 * inspection.shares[i]:>7.0f} %"
            f"{inspection.stops[i]:>+10.2f}{inspection.sharpness[i]:>11.2f}"
        )
    return "\n".join([*lines, "", *(line for verdict in inspection.verdicts for line in verdict.lines())])


def draw(inspection: Inspection):
    """Draws cameras, what they see, numbers of each photo, and the photos."""
    scene = inspection.scene
    lines = [f"{label:<9}{text}" for label, text in inspection.facts.items()]
    lines += [line for verdict in inspection.verdicts for line in verdict.lines()]
    lines = [part for line in lines for part in textwrap.wrap(line, WRAPPED_AT, subsequent_indent=" " * 20)]
    shown = _photos_to_draw(inspection)
    rows = -(-len(shown) // COLUMNS)
    photo_height = 1.4 * scene.images.shape[1] / scene.images.shape[2] + 0.25
    heights = [LINE_HEIGHT * len(lines) + 0.2, 6.2, 1.9, rows * photo_height]
    figure = figures.new_figure(15.0, sum(heights) + 0.9)
    outer = figure.add_gridspec(
        4, 1, height_ratios=heights, left=0.03, right=0.985, top=0.985, bottom=0.015, hspace=0.18
    )
    text = figure.add_subplot(outer[0])
    text.set_axis_off()
    for i, line in enumerate(lines):
        place = 1.0 - (i + 0.5) / len(lines)
        colour = figures.RED if line.startswith("problem") or line.startswith(" ") else figures.INK
        text.text(0.0, place, line, family="monospace", fontsize=9, color=colour, va="center", parse_math=False)
    spaces = outer[1].subgridspec(1, 2, wspace=0.05)
    splits = {"train": scene.i_train, "held out": np.union1d(scene.i_val, scene.i_test)}
    groups = {
        f"{name}, {len(chosen)}": ([scene.cameras[i] for i in chosen], scene.poses[chosen])
        for name, chosen in splits.items()
        if len(chosen)
    }
    path = scene.render_poses if len(scene.render_poses) else None
    draw_cameras(figure, spaces[0], "Cameras", groups, path)
    _draw_frusta_and_points(figure, spaces[1], inspection)
    _draw_numbers(figure, outer[2].subgridspec(1, 4, wspace=0.25), inspection)
    _draw_photos(figure, outer[3].subgridspec(rows, COLUMNS, wspace=0.05, hspace=0.05), inspection, shown)
    return figure


def _photos_to_draw(inspection: Inspection) -> list[int]:
    """Indices of photos, in order: those that a check names, and others evenly spaced."""
    count, odd = len(inspection.names), inspection.odd_photos()[:DRAWN_PHOTOS]
    even = np.linspace(0, count - 1, min(count, DRAWN_PHOTOS)).round().astype(int).tolist()
    others = [i for i in even if i not in odd]
    spare = DRAWN_PHOTOS - len(odd)
    kept = [others[i] for i in np.linspace(0, len(others) - 1, min(spare, len(others))).round().astype(int)]
    return sorted({*odd, *kept})


def _draw_frusta_and_points(figure, place, inspection: Inspection) -> None:
    """Draws a 3-D panel with the scene's points, and frusta of some cameras from near to far."""
    scene, points = inspection.scene, inspection.points
    chosen = np.unique(np.linspace(0, len(scene.poses) - 1, DRAWN_FRUSTA).round().astype(int))
    views = [(scene.cameras[i], scene.poses[i]) for i in chosen]
    depths = depths_in_images(*zip(*views, strict=True), points)
    closest, farthest = np.percentile(depths[np.isfinite(depths)], SHOWN_DEPTHS)
    ends = []  # near and far of a frustum, as far as there are points
    for i in chosen:
        near, far = capture_checks.depth_range(scene, i)
        ends.append((min(near, farthest), min(far, 1.1 * farthest)))
    corners = np.concatenate([frustum(*view, far) for view, (_, far) in zip(views, ends, strict=True)])
    axes = add_space(figure, place, "What they see from near to far, and the points", scene.poses, corners)
    within = np.abs(points - corners.mean(axis=0)).max(axis=1) < np.ptp(corners, axis=0).max()
    some = points[within][:: max(1, int(within.sum()) // DRAWN_POINTS)]
    axes.scatter(*some.T, s=1.5, color=figures.PALE, lw=0, depthshade=False)
    draw_frusta(axes, *zip(*views, strict=True), 0.6 * closest, figures.BLUE)
    for view, (near, far) in zip(views, ends, strict=True):
        for colour, end in ((figures.GREEN, near), (figures.ORANGE, far)):
            rectangle = frustum(*view, end)[[1, 2, 3, 4, 1]]
            axes.plot(*rectangle.T, color=colour, lw=0.9)
        for first, second in zip(frustum(*view, near)[1:], frustum(*view, far)[1:], strict=True):
            axes.plot(*np.stack([first, second]).T, color=figures.PALE, lw=0.4)
    for colour, name in ((figures.GREEN, "near"), (figures.ORANGE, "far")):
        axes.plot([], [], color=colour, label=name)
    axes.legend(loc="upper right", frameon=False, fontsize=9)


def _draw_numbers(figure, places, inspection: Inspection) -> None:
    """Draws the columns of the table over the photos' numbers."""
    scene, numbers = inspection.scene, np.arange(len(inspection.names))
    ranges = np.array([capture_checks.depth_range(scene, i) for i in numbers])
    panels = [figure.add_subplot(places[i]) for i in range(4)]
    figures.style_axes(panels[0], "Near and far")
    panels[0].vlines(numbers, *ranges.T, color=figures.BLUE, lw=max(1.0, 120 / len(numbers)))
    panels[0].set_ylim(0, 1.05 * ranges.max())
    columns = (
        ("Points in the frustum, %", 100 * inspection.shares, 0.0),
        ("Exposure, stops over the median", inspection.stops, None),
        ("Sharpness over the median", inspection.sharpness, 0.0),
    )
    for axes, (title, values, lowest) in zip(panels[1:], columns, strict=True):
        figures.style_axes(axes, title)
        axes.plot(numbers, values, "o-", color=figures.BLUE, ms=3, lw=0.8)
        odd = inspection.odd_photos()
        axes.plot(odd, values[odd], "o", color=figures.RED, ms=5)
        if lowest is not None:
            axes.set_ylim(lowest, 1.1 * values.max())
    known = inspection.stops[np.isfinite(inspection.stops)]
    panels[2].set_ylim(min([-1.0, *1.1 * known]), max([1.0, *1.1 * known]))
    panels[3].axhline(photo_checks.BLURRED, color=figures.RED, lw=0.8)
    for axes in panels:
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)


def _draw_photos(figure, places, inspection: Inspection, shown: Sequence[int]) -> None:
    odd = inspection.odd_photos()
    every = max(1, max(inspection.scene.images.shape[1:3]) // THUMBNAIL)
    for place, i in enumerate(shown):
        axes = figure.add_subplot(places[place // COLUMNS, place % COLUMNS])
        axes.imshow(view_files.to_8bit(inspection.scene.images[i, ::every, ::every]))
        axes.set(xticks=[], yticks=[])
        colour = figures.RED if i in odd else figures.INK
        axes.set_title(Path(inspection.names[i]).name[-24:], fontsize=7, color=colour, pad=2, parse_math=False)
        for side in axes.spines.values():
            side.set(color=colour, linewidth=2.0 if i in odd else 0.5)


def _arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = commandline.Parser("check_scene", __doc__, "%(prog)s SCENE [--out PNG] [flags of the program]")
    parser.add_argument("scene", metavar="SCENE", help="the scene's folder")
    parser.add_argument("--out", type=Path, help="the picture (default: SCENE_check.png in the current folder)")
    return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args, rest = _arguments(sys.argv[1:] if argv is None else argv)
    out = args.out or Path(f"{Path(args.scene).resolve().name}_check.png")
    rest = [*rest, f"--datadir={args.scene}", "--expname=check_scene"]
    settings = parsing.parse_settings(rest)
    try:
        settings = parsing.parse_settings([*rest, *guess_flags(Path(args.scene), settings)])
        inspection = inspect(settings)
        print(table(inspection))
        figures.save(draw(inspection), out)
    except (ValueError, OSError) as error:
        return commandline.fail("check_scene", error)
    print(out)
    return 0 if inspection.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
