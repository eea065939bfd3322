"""Command lines and error messages of the programs in tools/, as of `python -m nerf_tf`."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

# This module is imported before TensorFlow, which would otherwise print lines about the machine.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")


def fail(program: str, reason: object, code: int = 1) -> int:
    """Prints `program: reason` as one line on stderr; returns `code`, 1 for files and their content."""
    # Not at the top: --help is shown without the package too.
    from nerf_tf.settings import parsing

    print(f"{program}: {parsing.one_line(str(reason))}", file=sys.stderr)
    return code


class Parser(argparse.ArgumentParser):
    """A parser whose --help shows the program's docstring; a mistake ends in one line and exit code 2."""

    def __init__(self, program: str, description: str, usage: str | None = None):
        super().__init__(
            prog=f"{program}.py",
            usage=usage,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # unknown arguments may be flags of nerf_tf
        )
        self._program = program

    def error(self, message: str) -> NoReturn:
        sys.exit(fail(self._program, message.removeprefix("argument "), 2))
