"""What batch norm does to training, measured: one file per claim."""
