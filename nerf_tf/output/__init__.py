"""Output of a run: images, videos, the training curve and TensorBoard summaries."""
