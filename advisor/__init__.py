"""peft-advisor."""
