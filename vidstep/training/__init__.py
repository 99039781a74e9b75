"""State, step, checkpoint, metrics log."""
