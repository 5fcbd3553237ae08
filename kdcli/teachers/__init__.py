"""The teachers: the same question, asked in other places."""
