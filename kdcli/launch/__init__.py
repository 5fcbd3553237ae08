"""From the command line to a job: Typer's arguments become Hydra's, and errors become messages."""
