"""Teachers: the models whose outputs students learn from."""
