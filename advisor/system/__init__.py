"""What the operating system gives: files, folders, signals, memory, the processor."""
