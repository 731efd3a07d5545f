"""Where models come from and go to: one file per kind."""
