"""Encoding in training: once per optimizer step, exactly."""
