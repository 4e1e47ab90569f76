"""What a plugin author runs against a new plugin."""
