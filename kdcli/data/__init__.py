"""Data sets: files and hub repositories become checked, fingerprinted splits."""
