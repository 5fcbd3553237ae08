"""Students that keep a part of the teacher's weights."""
