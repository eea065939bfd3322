"""NeRF (Mildenhall et al., ECCV 2020) on TensorFlow 2 and Keras 3: the original's flags, files and numbers."""

__version__ = "0.1.0"
