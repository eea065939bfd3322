"""NeRF (Mildenhall et al., ECCV 2020) on TensorFlow 2 and Keras 3: the original's flags, files and numbers."""

import os

# Keras reads this when it is first imported; another backend, set for other projects, could not run a tf.function.
os.environ["KERAS_BACKEND"] = "tensorflow"

__version__ = "0.3.0"
