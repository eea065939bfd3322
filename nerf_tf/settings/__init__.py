"""Flags and config files -> frozen settings."""
