#!/usr/bin/env bash
# Runs the test suite, two files at a time: bash tools/test.sh [pytest arguments]
# The tests on the original authors' data run when NERF_TF_REAL_DATA names the folder that holds it.
cd "$(dirname "$0")/.."
. tools/support/venv.sh dev
exec "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
