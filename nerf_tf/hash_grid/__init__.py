"""The hash grid (Mueller et al. 2022): a field that trains in minutes, and its training step."""

import nerf_tf.field  # noqa: F401  turns TensorFloat-32 off
