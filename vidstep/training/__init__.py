"""The training state, the step, and what keeps a run alive: checkpoints and logs."""
