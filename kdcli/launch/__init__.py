"""Turns the command line into a job: Typer's arguments become Hydra's, and errors become messages."""
