"""Guards of a training run: bad steps, collapsed scenes, and stopping on a signal."""
