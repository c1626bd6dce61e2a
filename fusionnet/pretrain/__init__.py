"""Pre-training an encoder on strings alone: corpus, objectives, loop, model folder."""
