#!/usr/bin/env bash
# Trains on the built-in scene and shows the result: bash tools/demo.sh
# Needs python3 with venv. What an earlier call has made is kept; the path printed last is the picture to look at.
cd "$(dirname "$0")/.."
. tools/venv.sh plots

config=configs/demo.txt
steps=$(printf %06d "$(sed -n 's/^N_iters *= *//p' "$config")")
run=logs/demo

"$PYTHON" tools/make_scene.py --format blender --out data/demo --size 100 --train 60 --val 4 --test 8
"$PYTHON" -m nerf_tf --config "$config"
if [ ! -f "$run/renderonly_test_$steps/video_disp.mp4" ]; then
    "$PYTHON" -m nerf_tf --config "$config" --render_only --render_test --save_arrays
fi
if [ ! -f "$run/renderonly_path_$steps/video_disp.mp4" ]; then
    "$PYTHON" -m nerf_tf --config "$config" --render_only
fi
"$PYTHON" tools/plot_curve.py "$run" --out "$run/curve.png"
echo "test views, PSNR:       $run/metrics.json"
echo "orbit, rgb and depth:   $run/renderonly_path_$steps/video.mp4, video_disp.mp4"
echo "loss and PSNR:          $run/curve.png"
"$PYTHON" tools/contact_sheet.py --run "$run" --out "$run/contact_sheet.png"
