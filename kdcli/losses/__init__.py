"""Defines the losses, one file each. A loss gives one value per position and never reduces."""
