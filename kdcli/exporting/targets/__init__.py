"""Writes the files of students for devices, one module per device."""
