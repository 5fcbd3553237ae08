"""Where a student runs: one file per target runtime."""
