"""One network in training: its steps, its health, its progress, and its state on the disk."""
