"""The CI check: costs alone, the same on every run, held against limits and a committed baseline."""
