"""Training: engine, optimizer step, loop, checkpoints."""
