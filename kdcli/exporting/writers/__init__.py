"""Writers of file formats that several targets share."""
