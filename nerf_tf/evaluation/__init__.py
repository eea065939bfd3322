"""Rendered views against photos."""
