"""Students that keep a part of their teacher's weights."""
