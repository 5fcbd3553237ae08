"""How a student is born."""
