"""Camera paths for videos: those of a scene, keyframes, and files of poses."""
