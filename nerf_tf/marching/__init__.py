"""Rays march through an occupancy grid: samples in occupied cells, their colours, views and training steps."""
