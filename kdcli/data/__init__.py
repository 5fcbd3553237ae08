"""Turns files and hub repositories into checked, fingerprinted splits."""
