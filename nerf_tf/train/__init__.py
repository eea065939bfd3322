"""Ray batches -> weights."""
