# Sourced by demo.sh and test.sh: makes .venv beside this folder once, with the project and the given extras in it.
# Usage: . tools/support/venv.sh EXTRAS, from the project's folder. Sets PYTHON.
set -eu
PYTHON=.venv/bin/python
stamp=".venv/installed-$1"
if [ ! -f "$stamp" ] || [ setup.cfg -nt "$stamp" ]; then
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1 && ! python3 -m venv --clear .venv; then
        echo "python3 cannot make a virtual environment: install its venv module (Debian: python3-venv)" >&2
        exit 1
    fi
    if ! "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
        echo "TensorFlow needs Python 3.10 to 3.13, and python3 is $(python3 --version); put one of those first in PATH" >&2
        exit 1
    fi
    echo "installing nerf_tf[$1] into .venv (TensorFlow is a large download)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -e ".[$1]"
    touch "$stamp"
fi
