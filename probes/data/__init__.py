"""What a trainer reads: rows of tokens in blocks, batches, jitter, and the split."""
