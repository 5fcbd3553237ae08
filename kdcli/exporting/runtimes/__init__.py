"""What runs a model in a process of its own: one file per runtime."""
