"""Rows of the cache as tensors, and the plan of which step has which."""
