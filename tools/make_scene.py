"""Writes the built-in scene to disk in one of the formats that nerf_tf reads; 360 is LLFF of a walk around it.

    python tools/make_scene.py --format blender --out data/demo --size 100 --train 60 --val 5 --test 10

A complete folder that was written with the same settings is kept. Prints the folder last.
"""

from __future__ import annotations

import argparse
import os
import sys

import still_life
from support import commandline


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = commandline.Parser("make_scene", __doc__)
    parser.add_argument("--format", choices=("blender", "llff", "360", "deepvoxels"), default="blender")
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument(
        "--size", type=int, default=100, help="side of the images; llff, 360: their height, 3/4 of the width"
    )
    parser.add_argument("--train", type=int, default=60, help="training views; llff, 360: all views")
    parser.add_argument("--val", type=int, default=5, help="validation views (blender, deepvoxels)")
    parser.add_argument("--test", type=int, default=10, help="test views (blender, deepvoxels)")
    parser.add_argument("--shape", default="greek", help="the object's name (deepvoxels)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the cameras")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that render")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    args = _arguments(argv)
    views = {"n_train": args.train, "n_val": args.val, "n_test": args.test}
    shared = {"seed": args.seed, "workers": args.workers}
    try:
        if args.format == "blender":
            folder = still_life.write_blender(args.out, args.size, args.size, **views, **shared)
        elif args.format in ("llff", "360"):
            shared["surroundings"] = "room" if args.format == "llff" else "hall"
            folder = still_life.write_llff(args.out, args.size, args.size * 4 // 3 // 2 * 2, args.train, **shared)
        else:
            folder = still_life.write_deepvoxels(args.out, args.shape, **views, side=args.size, **shared)
    except (ValueError, OSError) as error:
        return commandline.fail("make_scene", error)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
