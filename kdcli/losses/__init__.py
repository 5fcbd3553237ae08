"""The losses: one file each; a loss gives one value per position and never reduces."""
