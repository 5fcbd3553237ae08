"""Writes file formats that several targets share."""
