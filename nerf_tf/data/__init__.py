"""Files on disk -> Scene -> stream of ray batches."""
