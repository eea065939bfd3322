"""Guards of a training run, diagnosis of bad steps, stopping on a signal, and checks of scenes, folders and workers."""
