"""COLMAP's sparse models: reconstructed from photos in this process, read from files, and undistorted.

Needs pycolmap, the extra `colmap`. A model holds cameras, images with their poses, and 3D points.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image  # noqa: F401  before pycolmap, whose zlib would get into Pillow's way: it crashed as it wrote a PNG
import pycolmap
from tqdm import tqdm

from nerf_tf.geometry import poses as pose_maths
from nerf_tf.storage import image_reader
from support import photo_folders

# Seconds between two updates of a stage's progress bar.
_LOOK = 0.5
# Photos in a block of pairs. Each block is written to the database at its end, so small ones lose little when stopped.
_BLOCK = 10
# Depths of the points that a photo shows, in per cent of their number: LLFF's.
BOUNDS_PERCENT = (0.1, 99.9)
# A point's depth counts if so many photos show it, and none much farther from its place than is usual: the nearest
# depth scales the whole scene. Of fern, points of two photos made it 30 % too near, and one of five photos with a large
# error made the farthest 40 % too far. Where a photo shows too few such points, fewer photos have to show them.
CERTAIN_VIEWS, ENOUGH_POINTS = 4, 50
CERTAIN_ERROR = 2.0  # times the median

# Longer side of photos in pixels, and number of features, where poses are found quickly; COLMAP has 3200 and 8192. The
# time of poses goes with the number of features, and that of features with the pixels.
QUICK_SIDE, QUICK_FEATURES = 1000, 2048

Model = pycolmap.Reconstruction


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A photo with its pose.

    Attributes:
        name: of the photo's file.
        c2w: [3, 4] camera-to-world, OpenGL axes.
        intrinsics: height, width, fx, fy, cx, cy in pixels.
        bounds: least and greatest depth of the points that it shows, or None if it shows none.
    """

    name: str
    c2w: np.ndarray
    intrinsics: tuple[float, ...]
    bounds: tuple[float, float] | None


def set_up(seed: int) -> None:
    """Silences COLMAP's log, as what goes wrong is raised, and seeds its random numbers."""
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    pycolmap.set_random_seed(seed)


def find_features(database: Path, photos: Path, names: Sequence[str], camera_model: str, quick: bool = False) -> None:
    """Finds features of photos, those of one size by one camera; what the database has is not looked for again.

    Args:
        database: file to write them to.
        photos: folder of the photos.
        names: of the photos.
        camera_model: COLMAP's kind of camera.
        quick: takes fewer, from smaller photos; see `QUICK_SIDE`.
    """
    extraction = pycolmap.FeatureExtractionOptions()
    if quick:
        extraction.max_image_size, extraction.sift.max_num_features = QUICK_SIDE, QUICK_FEATURES
    of_size: dict[tuple[int, int], list[str]] = {}
    for name in names:
        of_size.setdefault(image_reader.image_size(photos / name), []).append(name)

    def extract(token: pycolmap.CancellationToken) -> None:
        """Finds the features of each size's photos."""
        for (height, width), of_camera in of_size.items():
            options = pycolmap.ImageReaderOptions(camera_model=camera_model)
            for camera in opened.read_all_cameras():
                if (camera.height, camera.width) == (height, width):  # that of a run that was stopped
                    options.existing_camera_id = camera.camera_id
            pycolmap.extract_features(
                database, photos, of_camera, pycolmap.CameraMode.SINGLE, options, extraction, cancellation_token=token
            )

    with pycolmap.Database.open(database) as opened:
        _run("Finding features", "photo", len(names), lambda: opened.num_images(), extract)


def match_features(database: Path, count: int, is_sequence: bool, seed: int) -> None:
    """Matches features of pairs of `count` photos, except pairs that the database has already.

    Args:
        database: what `find_features` made.
        count: number of photos.
        is_sequence: matches each photo with the next ten and some farther on, as in a video; otherwise all pairs.
        seed: of the random samples of matches.
    """
    checks = pycolmap.TwoViewGeometryOptions()
    checks.ransac.random_seed = seed
    if is_sequence:
        pairing = pycolmap.SequentialPairingOptions()
        offsets = {*range(1, pairing.overlap + 1), *(2**power for power in range(pairing.overlap))}
        pairs = sum(max(count - offset, 0) for offset in offsets)
        match = pycolmap.match_sequential
    else:
        pairing = pycolmap.ExhaustivePairingOptions(block_size=_BLOCK)
        pairs, match = count * (count - 1) // 2, pycolmap.match_exhaustive
    with pycolmap.Database.open(database) as opened:
        _run(
            "Matching features",
            "pair",
            pairs,
            lambda: opened.num_matched_image_pairs(),
            lambda token: match(
                database, pairing_options=pairing, verification_options=checks, cancellation_token=token
            ),
        )


def find_models(database: Path, photos: Path, folder: Path, count: int, seed: int) -> list[Model]:
    """Finds poses and points of `count` photos.

    Returns:
        Models of photos that belong together, that of most photos first; none if there is no place to begin.
    """
    options = pycolmap.IncrementalPipelineOptions(random_seed=seed, min_model_size=photo_folders.FEWEST)
    options.mapper.random_seed = options.triangulation.random_seed = seed
    placed = [2]  # the first pair; then one for each call

    def count_photo() -> None:
        placed[0] += 1

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    models = _run(
        "Finding poses",
        "photo",
        count,
        lambda: min(placed[0], count),
        lambda token: pycolmap.incremental_mapping(
            database, photos, folder, options, next_image_callback=count_photo, cancellation_token=token
        ),
    )
    return sorted(models.values(), key=lambda model: -model.num_reg_images())


def _run(
    description: str,
    unit: str,
    total: int,
    count: Callable[[], int],
    function: Callable[[pycolmap.CancellationToken], object],
) -> object:
    """Runs `function` in a thread, under a progress bar of `count` of `total`; Ctrl-C ends it."""
    token = pycolmap.CancellationToken()
    with concurrent.futures.ThreadPoolExecutor(1) as pool, tqdm(total=total, desc=description, unit=unit) as bar:
        future = pool.submit(function, token)
        try:
            while not future.done():
                concurrent.futures.wait([future], _LOOK)
                bar.update(min(count(), total) - bar.n)
            return future.result()
        finally:
            token.cancel()


def read_model(folder: Path) -> Model:
    """Reads a model from its files, text or binary, with or without those of rigs and frames.

    Raises:
        FileNotFoundError, ValueError: the folder is missing, or holds no model that can be read.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give that of cameras.bin or cameras.txt, such as sparse/0")
    try:
        return Model(folder)
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).partition("] ")[2] or str(error)  # it begins with a line of COLMAP's code
        raise ValueError(
            f"{folder}: not a COLMAP model ({reason}); it needs cameras, images and points3D, all .bin or all .txt"
        ) from error


def names_with_pose(model: Model) -> list[str]:
    """Names of the images with a pose, sorted."""
    return sorted(image.name for image in model.images.values() if image.has_pose)


def undistort(model: Model, photos: Mapping[str, Path], names: Mapping[str, str], folder: Path) -> Model:
    """Writes photos as a pinhole camera would have taken them, without the blank rims that this makes.

    Args:
        model: a model of distorted or other cameras.
        photos: files by the names that the model's images have; images without one are left out.
        names: names of the files to write, by the same names.
        folder: where to write them.

    Returns:
        The model of the new photos: without distortion and rigs, its images as those named.

    Raises:
        ValueError: a photo cannot be read, or has not its camera's size; or a camera is of a kind that has no pinhole.
    """
    options = pycolmap.UndistortCameraOptions()
    images = sorted((i for i in model.images.values() if i.has_pose and i.name in photos), key=lambda i: names[i.name])
    new = Model()
    for number in sorted({image.camera_id for image in images}):
        camera = model.cameras[number]
        try:
            pinhole = camera if camera.is_undistorted() else pycolmap.undistort_camera(options, camera)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"camera {number} is {camera.model_name}, which no pinhole camera can stand for; find the poses anew "
                "from photos of another lens"
            ) from error
        pinhole.camera_id = number
        new.add_camera_with_trivial_rig(pinhole)
    for image in images:
        pixels = np.array([point.xy for point in image.points2D]).reshape(-1, 2)
        rays = image.camera.cam_from_img(pixels)
        pixels = new.cameras[image.camera_id].img_from_cam(np.concatenate([rays, np.ones((len(rays), 1))], axis=-1))
        new_image = pycolmap.Image(
            name=names[image.name], keypoints=pixels, camera_id=image.camera_id, image_id=image.image_id
        )
        new.add_image_with_trivial_frame(new_image, image.cam_from_world())
    for point in model.points3D.values():
        seen = [element for element in point.track.elements if element.image_id in new.images]
        if len(seen) > 1:
            new.add_point3D(point.xyz, pycolmap.Track(seen), point.color)
    new.update_point_3d_errors()

    def write(index: int) -> None:
        image = images[index]
        camera, source, target = image.camera, photos[image.name], folder / names[image.name]
        photo = photo_folders.read_upright(source, (camera.width, camera.height))
        if not camera.is_undistorted():
            bitmap, _ = pycolmap.undistort_image(options, pycolmap.Bitmap.from_array(np.asarray(photo)), camera)
            photo = bitmap.to_array()
        photo_folders.write_photo(photo, target)

    image_reader.run_parallel(write, len(images), "Undistorting photos")
    return new


def views(model: Model) -> list[View]:
    """Views of an undistorted model, sorted by name."""
    points = model.points3D
    limit = CERTAIN_ERROR * float(np.median([point.error for point in points.values()] or [0.0]))
    certainty = {number: point.track.length() if point.error <= limit else 1 for number, point in points.items()}
    return [_view(model, image, certainty) for image in sorted(model.images.values(), key=lambda image: image.name)]


def _view(model: Model, image: pycolmap.Image, certainty: Mapping[int, int]) -> View:
    camera, w2c = image.camera, image.cam_from_world().matrix()
    seen = [point.point3D_id for point in image.points2D if point.has_point3D()]
    for fewest in range(CERTAIN_VIEWS, 0, -1):
        certain = [number for number in seen if certainty[number] >= fewest]
        if len(certain) >= ENOUGH_POINTS:
            break
    positions = np.array([model.points3D[number].xyz for number in certain]).reshape(-1, 3)
    depths = positions @ w2c[2, :3] + w2c[2, 3]
    depths = depths[depths > 0]
    return View(
        image.name,
        pose_maths.opencv_to_opengl(pose_maths.invert(w2c)),
        (camera.height, camera.width, camera.focal_length_x, camera.focal_length_y, camera.principal_point_x,
         camera.principal_point_y),
        tuple(np.percentile(depths, BOUNDS_PERCENT).tolist()) if depths.size else None,
    )  # fmt: skip
