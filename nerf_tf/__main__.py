"""`python -m nerf_tf`, and the console script `nerf-tf`."""

from __future__ import annotations

import os
import signal
import sys

from absl import app, flags

from nerf_tf.settings import parsing


def _run(argv: list[str]) -> None:
    del argv  # the flags are read already
    # TensorFlow takes seconds to load: not before the flags are known to be good.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    from nerf_tf import app as nerf_app

    verbosity = flags.FLAGS.verbosity if flags.FLAGS["verbosity"].present else None
    sys.exit(nerf_app.main(parsing.read_settings(), verbosity))


def main() -> None:
    """Reads flags and config file, then runs the program."""
    try:
        app.run(_run, flags_parser=parsing.parse_flags)
    except KeyboardInterrupt:  # while TensorFlow loads; later `app` handles it
        sys.stderr.write("nerf_tf: interrupted\n")
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
