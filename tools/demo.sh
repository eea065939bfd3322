#!/usr/bin/env bash
# Trains on the built-in scene and shows the result: bash tools/demo.sh
# With the word mlp the paper's networks are trained beside it, in some minutes more: bash tools/demo.sh mlp
# Needs python3 with venv. What an earlier call has made is kept; the path printed last is the picture to look at.
cd "$(dirname "$0")/.."
. tools/support/venv.sh plots
run=logs/demo_fast

"$PYTHON" tools/make_scene.py --format blender --out data/demo --size 100 --train 60 --val 4 --test 8
show() { # config, run's folder: trains, and renders test views and path
    nerf() { "$PYTHON" -m nerf_tf --config "$@"; }
    nerf "$1"
    # Renders are named after the step that comes next, weights after the last.
    last=$(ls "$2" | sed -n 's/^model_\([0-9]*\)\.npy$/\1/p' | sort | tail -n 1)
    step=$(printf %06d $((10#$last + 1)))
    [ -f "$2/renderonly_test_$step/video_disp.mp4" ] || nerf "$1" --render_only --render_test --save_arrays
    "$PYTHON" tools/contact_sheet.py --run "$2" --out "$2/contact_sheet.png"
    [ -f "$2/renderonly_path_$step/video_disp.mp4" ] || nerf "$1" --render_only --save_arrays
}
if [ "${1-}" = mlp ]; then
    show configs/demo.txt logs/demo
    runs=logs/demo
fi
show configs/fast/demo.txt "$run"
"$PYTHON" tools/plot_curve.py "$run" --out "$run/curve.png"
echo "test views, scores:   $run/metrics.json, and with other runs: tools/compare.py"
echo "orbit:                $run/renderonly_path_$step/video.mp4 and video_disp.mp4 (disparity)"
"$PYTHON" tools/contact_sheet.py --run "$run" --path --views 6 >/dev/null
echo "frames of the orbit:  $run/path_sheet.png"
echo "loss and PSNR:        $run/curve.png"
"$PYTHON" tools/compare.py "$run" ${runs-}
echo "$run/contact_sheet.png"
