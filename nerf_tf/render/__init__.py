"""Rays -> pixels. Fields arrive as callables; nothing here imports `nerf_tf.field`."""
