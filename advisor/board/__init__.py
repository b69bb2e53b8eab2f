"""What goes to the board: a folder that runs the recommended fine-tune there, with torch alone."""
