# Sourced by demo.sh and test.sh: makes .venv beside this folder once, with the project and the given extras in it.
# Usage: . tools/venv.sh EXTRAS, from the project's folder. Sets PYTHON.
set -eu
PYTHON=.venv/bin/python
stamp=".venv/installed-$1"
if [ ! -f "$stamp" ] || [ setup.cfg -nt "$stamp" ]; then
    [ -x "$PYTHON" ] || python3 -m venv .venv
    echo "installing nerf_tf[$1] into .venv (TensorFlow is a large download)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -e ".[$1]"
    touch "$stamp"
fi
