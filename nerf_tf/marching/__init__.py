"""Rays march through grids of what is occupied: samples, colours and views without empty space.

Fields arrive as callables; nothing here imports `nerf_tf.field`.
"""
