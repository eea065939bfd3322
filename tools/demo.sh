#!/usr/bin/env bash
# Trains on the built-in scene and shows the result: bash tools/demo.sh
# Needs python3 with venv. What an earlier call has made is kept; the path printed last is the picture to look at.
cd "$(dirname "$0")/.."
. tools/support/venv.sh plots
run=logs/demo
nerf() { "$PYTHON" -m nerf_tf --config configs/demo.txt "$@"; }

"$PYTHON" tools/make_scene.py --format blender --out data/demo --size 100 --train 60 --val 4 --test 8
nerf
# Renders are named after the step that comes next, weights after the last.
last=$(ls "$run" | sed -n 's/^model_\([0-9]*\)\.npy$/\1/p' | sort | tail -n 1)
step=$(printf %06d $((10#$last + 1)))
[ -f "$run/renderonly_test_$step/video_disp.mp4" ] || nerf --render_only --render_test --save_arrays
[ -f "$run/renderonly_path_$step/video_disp.mp4" ] || nerf --render_only --save_arrays
"$PYTHON" tools/plot_curve.py "$run" --out "$run/curve.png"
echo "test views, scores:   $run/metrics.json, and with other runs: tools/compare.py"
echo "orbit:                $run/renderonly_path_$step/video.mp4 and video_disp.mp4 (disparity)"
"$PYTHON" tools/contact_sheet.py --run "$run" --path --views 6 >/dev/null
echo "frames of the orbit:  $run/path_sheet.png"
echo "loss and PSNR:        $run/curve.png"
"$PYTHON" tools/compare.py "$run"
"$PYTHON" tools/contact_sheet.py --run "$run" --out "$run/contact_sheet.png"
