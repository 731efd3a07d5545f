"""Statistics of what norms read, pooled over batches, calls and processes."""
