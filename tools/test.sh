#!/usr/bin/env bash
# Runs the test suite, two files at a time: bash tools/test.sh [pytest arguments]
# The tests on the original authors' data run when NERF_TF_REAL_DATA names the folder that holds it.
cd "$(dirname "$0")/.."
. tools/support/venv.sh dev
# pytest rewrites all modules of every plugin that it loads by itself, Hypothesis' among them, each time they are imported.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
exec "$PYTHON" -m pytest -p xdist -n 2 --dist loadfile --no-loadscope-reorder "$@"
