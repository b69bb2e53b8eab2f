"""What a recommended fine-tune leaves: adapters and recipes, merged models, PEFT's form, heads that grow."""
