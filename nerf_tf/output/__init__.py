"""Rendered views and training curves as files."""
