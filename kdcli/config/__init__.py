"""The config: its schema, how it is checked, and where its YAML files lie. Never imports torch."""
