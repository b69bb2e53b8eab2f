"""A candidate in motion: a method attached with its levers, and one update of it."""
