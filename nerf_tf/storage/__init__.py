"""Files on disk: atomic writes, readers for untrusted files, weights, checkpoints and the lock."""
