"""Makes a video of a scene from photos, or from a video of it: poses, a check, three minutes of training, a flight.

    bash tools/from_photos.sh photos out/room                          # makes .venv first, as tools/demo.sh does
    bash tools/from_photos.sh walk.mp4 out/room --frames 80 --minutes 5
    python tools/from_photos.py photos out/room --kind 360 --factor 4 --render_width 960

    OUT/video.mp4           the flight: a spiral before the scene, or a circle around it
    OUT/contact_sheet.png   test views: photo, render, disparity, PSNR
    OUT/check.png, .txt     cameras, bounds, exposure, blur; and what is wrong with them (tools/check_scene.py)
    OUT/scene/              the photos that have a pose, and the poses (tools/imgs2poses.py)
    OUT/run/                the training run; OUT/summaries/ for TensorBoard
    OUT/stages.json         the record of what is finished

The stages are poses, check, train, video, sheet. Give the same command again after it was stopped: what is finished is
skipped, and training continues from its last checkpoint. With other photos or flags it begins at the first stage that
they concern, and moves what it had made of the others to OUT/earlier_1/. More --minutes continue the training.

A hash grid is trained (--field hash_grid, the guide's section 15). What faces one way is trained in NDC, with
configs/fast/fern.txt; what was photographed all around in contracted space, with configs/fast/360.txt. The poses tell
which of the two it is; --kind overrides them.

All flags of the program may follow: those about paths and views (--render_width, --render_frames, --render_path,
--render_path_file, --fps) count for the video, the others for training. The video is small and short, so that it takes
minutes: --render_width 960 --render_frames 240, given afterwards, make another one. Photos are PNG or JPEG of one
camera and zoom. Those of several sizes, as portraits among landscapes, are trained as a scene of transforms.json, in
contracted space.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from support import commandline

# Nothing that has to be installed is imported before --help is answered.

STAGES = ("poses", "check", "train", "video", "sheet")
MINUTES, FRAMES = 3.0, 60
# Pixels of the longer side of photos that are trained on, about: those of the authors' fern at an eighth.
LONGER_SIDE = 500
# Views of the video, their pixels and views a second, if not told otherwise: 5 million rays, some minutes on two cores.
VIEWS, VIEW_PIXELS, FPS = 60, 80_000, 20
# Test views below so many dB show another scene than the photos do: after three minutes they have 23 to 34.
POOR = 20.0
# The kinds of scenes: those that --kind names, and that of transforms.json. The config of each, and how it is loaded.
KINDS = ("ndc", "360")
CONFIGS = {"ndc": "configs/fast/fern.txt", **dict.fromkeys(("360", "transforms"), "configs/fast/360.txt")}
FLAGS = {
    "ndc": [],
    "360": ["--no_ndc", "--spherify"],
    "transforms": ["--dataset_type=transforms", "--no_ndc=False", "--spherify=False"],
}
# Flags of the program that this one chooses, and what to give instead; and those that concern the video alone.
CHOSEN = {
    **dict.fromkeys(("config", "datadir", "basedir", "expname", "dataset_type"), "leave it out"),
    **dict.fromkeys(("no_ndc", "spherify"), "give --kind ndc or --kind 360"),
    "train_minutes": "give --minutes",
    **dict.fromkeys(("render_only", "render_test", "eval_only", "eval_folder"), "leave it out"),
}
OF_VIDEO = ("render_width", "render_factor", "render_frames", "render_path", "render_path_file", "fps")


class StageFailed(Exception):
    """A program ended with an exit code other than 0, after a line that says why."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


def run_program(program: str, *words: object, output: Path | None = None) -> int:
    """Runs a program of tools/, or `nerf_tf`, in a process of its own; returns its exit code.

    Args:
        program: its name.
        words: its arguments.
        output: file to which what it prints is also written.
    """
    start = ["-m", "nerf_tf"] if program == "nerf_tf" else [str(Path(__file__).with_name(f"{program}.py"))]
    pipe = None if output is None else subprocess.PIPE
    with (
        subprocess.Popen([sys.executable, *start, *map(str, words)], stdout=pipe, text=True) as process,
        _signals_passed_on(process),
    ):
        if output is not None:
            text = process.stdout.read()
            print(text, end="", flush=True)
            output.write_text(text, encoding="utf-8")
        return process.wait()


@contextlib.contextmanager
def _signals_passed_on(process: subprocess.Popen) -> Iterator[None]:
    """Passes SIGTERM on to a program, which then saves and ends; Ctrl-C reaches it without help."""
    handlers = {
        signal.SIGINT: lambda *_: None,
        signal.SIGTERM: lambda *_: process.terminate(),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def require_success(code: int) -> None:
    """Raises `StageFailed` unless an exit code is 0."""
    if code:
        raise StageFailed(code)


def choose_kind(scene: Path, kind: str) -> tuple[str, list[str]]:
    """Chooses ndc or 360 for the scene in a folder by its poses, unless `kind` says which; prints why.

    Returns:
        The kind, transforms where there is no poses_bounds.npy; and flags for the video's path.

    Raises:
        ValueError, OSError: poses_bounds.npy cannot be read, or is missing for ndc.
    """
    from nerf_tf.geometry import poses as pose_maths
    from nerf_tf.geometry.camera import Camera
    from nerf_tf.safety import capture_checks
    from nerf_tf.storage import llff_files

    file = scene / "poses_bounds.npy"
    if not file.is_file():
        if kind == "ndc":
            raise ValueError(f"{file}: no such file, as {scene / 'imgs2poses.txt'} explains; leave out --kind")
        print(f"no poses_bounds.npy: transforms.json, contracted space; {CONFIGS['transforms']}", flush=True)
        return "transforms", []
    poses, hwf, _ = llff_files.read_poses_bounds(file)
    cameras = [Camera.centred(round(height), round(width), focal) for height, width, focal in hwf]
    capture = capture_checks.find_capture(cameras, pose_maths.llff_to_opengl(poses))
    found = "ndc" if capture.kind == capture_checks.FORWARD else "360"
    chosen = found if kind == "auto" else kind
    words = {"ndc": "NDC", "360": "--no_ndc --spherify, contracted space"}[chosen]
    but = "" if chosen == found else " (as --kind says, against the poses)"
    print(f"{capture.describe()}: {words}{but}; {CONFIGS[chosen]}", flush=True)
    outwards = capture.kind == capture_checks.MIXED and chosen == "360"
    return chosen, ["--render_path=test"] if outwards else []


def usual_size(scene: Path) -> tuple[int, int]:
    """Height and width of the scene's photos; of several sizes the one that the scene's views have."""
    from nerf_tf.captures import photo_sizes
    from nerf_tf.storage import image_folders, image_reader

    paths = image_folders.list_images(scene / "images")
    return photo_sizes.smallest_usual([image_reader.image_size(path) for path in paths])


def choose_factor(scene: Path) -> int:
    """The factor by which photos are shrunk, so that their longer side is about `LONGER_SIDE`."""
    return max(1, round(max(usual_size(scene)) / LONGER_SIDE))


def choose_video(scene: Path, of_video: Iterable[str]) -> list[str]:
    """Flags for number, size and speed of the video's views, where those in `of_video` leave them open."""
    named = {word.lstrip("-").partition("=")[0] for word in of_video}
    flags = []
    if not named & {"render_frames", "render_path_file"}:
        flags.append(f"--render_frames={VIEWS}")
        if "fps" not in named:
            flags.append(f"--fps={FPS}")
    if not named & {"render_width", "render_factor"}:
        height, width = usual_size(scene)
        flags.append(f"--render_width={min(width, round((VIEW_PIXELS * width / height) ** 0.5 / 2) * 2)}")
    return flags


def describe_source(args: argparse.Namespace) -> dict[str, object]:
    """What the poses depend on: names, sizes and times of the photos, and flags.

    Raises:
        ValueError, OSError: there are no photos, or some that are not read.
    """
    from support import photo_folders

    from nerf_tf.storage import readers

    is_folder = args.photos.is_dir()
    files = photo_folders.list_photos(args.photos) if is_folder else [args.photos]
    readers.require_file(files[0])
    if args.sparse is not None:
        files += [path for path in sorted(args.sparse.iterdir()) if path.is_file()]
    return {
        "photos": [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files],
        "frames": None if is_folder else args.frames,
        "sparse": args.sparse and str(args.sparse.resolve()),
    }


def program_flags(rest: list[str]) -> tuple[list[str], list[str]]:
    """The flags of the program that were given, for training and for the video, checked.

    Raises:
        SystemExit: a flag is wrong; one line says what.
        ValueError: this program chooses it.
    """
    from nerf_tf.settings import parsing

    named = {word.lstrip("-").partition("=")[0] for word in rest if word.startswith("--")}
    for name in sorted(named & CHOSEN.keys()):
        raise ValueError(f"--{name} is chosen by this program; {CHOSEN[name]}")
    settings = parsing.parse_settings([f"--config={CONFIGS['ndc']}", "--expname=run", *rest])
    given = settings.from_command_line - {"config", "expname"}
    words = {name: f"--{name}={getattr(settings, name)}" for name in sorted(given)}
    of_video = [word for name, word in words.items() if name in OF_VIDEO]
    return [word for name, word in words.items() if name not in OF_VIDEO], of_video


def newest(folder: Path, pattern: str) -> Path:
    """The file or folder of a run with the highest step in its name."""
    return max(folder.glob(pattern), key=lambda path: int("".join(filter(str.isdigit, path.name))))


def run_stages(args: argparse.Namespace, train_flags: list[str], video_flags: list[str]) -> None:
    """Runs all stages that are not finished.

    Raises:
        StageFailed: a program failed, and said why.
        ValueError, OSError: files are missing or wrong.
    """
    from support.stages import Stages

    out, scene, run = args.out, args.out / "scene", args.out / "run"
    stages = Stages(out, STAGES)
    sparse = [] if args.sparse is None else ["--sparse", args.sparse]

    def find_poses() -> None:
        require_success(run_program("imgs2poses", args.photos, scene, "--frames", args.frames, "--quick", *sparse))

    stages.run("poses", describe_source(args), ["scene"], find_poses)
    kind, path_flags = choose_kind(scene, args.kind)
    factor = choose_factor(scene) if args.factor is None else args.factor
    picture = out / "check.png"

    def check() -> None:
        picture.unlink(missing_ok=True)
        lindisp = [] if kind == "ndc" else ["--lindisp"]  # how the hash grid samples there
        words = [scene, "--factor", factor, *FLAGS[kind], *lindisp, "--out", picture]
        code = run_program("check_scene", *words, output=out / "check.txt")
        if not picture.exists():  # if it was drawn, the photos have a problem, and may do even so
            raise StageFailed(code or 1)
        if code:
            print(f"there are problems, see above and {picture}; continues all the same", flush=True)

    stages.run("check", {"kind": kind, "factor": factor}, ["check.png", "check.txt"], check)
    own = [f"--config={CONFIGS[kind]}", f"--datadir={scene}", f"--basedir={out}", "--expname=run", f"--factor={factor}"]
    own += FLAGS[kind]

    def train() -> None:
        require_success(run_program("nerf_tf", *own, f"--train_minutes={args.minutes:g}", *train_flags))

    stages.run("train", {"flags": [*own, *train_flags]}, ["run"], train, extent={"minutes": args.minutes})
    render = [f"--config={run / 'args.txt'}", f"--basedir={out}", "--expname=run", "--render_only"]
    weights = newest(run, "model_[0-9]*.npy").name

    video_flags = [*path_flags, *choose_video(scene, video_flags), *video_flags]

    def make_video() -> None:
        require_success(run_program("nerf_tf", *render, *video_flags))
        shutil.copyfile(newest(run, "renderonly_path_*") / "video.mp4", out / "video.mp4")

    stages.run("video", {"weights": weights, "flags": video_flags}, ["video.mp4"], make_video)

    def make_sheet() -> None:
        require_success(run_program("nerf_tf", *render, "--render_test", "--save_arrays"))
        require_success(run_program("contact_sheet", "--run", run, "--out", out / "contact_sheet.png"))

    stages.run("sheet", {"weights": weights}, ["contact_sheet.png"], make_sheet)
    score = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["psnr_8bit"]["mean"]
    viewer = [sys.executable, Path(__file__).with_name("viewer.py"), run]
    print(f"all stages: {stages.seconds() / 60:.1f} minutes")
    print(
        f"video:         {out / 'video.mp4'}; larger or longer: the same command with --render_width, --render_frames"
    )
    print(f"test views:    {out / 'contact_sheet.png'}; {score:.1f} dB; all scores: {run / 'metrics.json'}")
    print(f"the scene:     {picture}")
    print(f"look around:   {' '.join(map(str, viewer))}")
    if score < POOR:
        print(
            f"from_photos: test views of {score:.1f} dB: the scene was not learnt; see whether {picture} shows the "
            "cameras where they stood, then train longer (--minutes 10), as another kind (--kind), or with more photos"
        )


def _arguments(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    usage = "%(prog)s PHOTOS_OR_VIDEO OUT [options] [flags of the program]"
    parser = commandline.Parser("from_photos", __doc__, usage)
    parser.add_argument("photos", type=Path, metavar="PHOTOS_OR_VIDEO", help="folder of photos, or a video file")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for all that is made")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"of training (default: {MINUTES:g})")
    parser.add_argument("--kind", choices=("auto", *KINDS), default="auto", help="default: as the poses tell")
    parser.add_argument(
        "--factor", type=int, metavar="N", help=f"divide the photos' sides (default: to about {LONGER_SIDE} pixels)"
    )
    parser.add_argument("--frames", type=int, default=FRAMES, metavar="N", help=f"to take of a video ({FRAMES})")
    parser.add_argument(
        "--sparse", type=Path, metavar="DIR", help="COLMAP's model of the photos, instead of finding one"
    )
    args, rest = parser.parse_known_args(argv)
    if not args.minutes > 0:
        parser.error(f"--minutes {args.minutes:g}: expected a number > 0")
    if args.factor is not None and args.factor < 1:
        parser.error(f"--factor {args.factor}: expected a whole number >= 1")
    return args, rest


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args, rest = _arguments(argv)
    args.out = args.out.resolve()
    try:
        run_stages(args, *program_flags(rest))
    except StageFailed as failed:
        code = failed.code if failed.code > 0 else 128 - failed.code  # of a process that a signal ended
        if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            return commandline.fail("from_photos", "stopped; the same command continues from there", code)
        return code
    except (ValueError, OSError) as error:
        return commandline.fail("from_photos", error)
    except KeyboardInterrupt:
        return commandline.fail("from_photos", "stopped; the same command continues from there", 130)
    return 0


if __name__ == "__main__":
    sys.exit(main())
