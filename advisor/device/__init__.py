"""The device that an update is for: what its runtime takes, and how long its operators do."""
