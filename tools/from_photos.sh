#!/usr/bin/env bash
# Makes a video of a scene from photos, or from a video of it: bash tools/from_photos.sh PHOTOS_OR_VIDEO OUT
# Needs python3 with venv. --help lists what can be chosen; the same command continues where it was stopped.
here=$PWD
cd "$(dirname "$0")/.."
case " $* " in *" --help "* | *" -h "*) exec python3 tools/from_photos.py --help ;; esac
. tools/support/venv.sh colmap,plots,viewer
project=$PWD
cd "$here"
exec "$project/$PYTHON" "$project/tools/from_photos.py" "$@"
