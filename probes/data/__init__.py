"""Input of the trainers: token sources, rows of column blocks, batches, jitter, and the validation split."""
