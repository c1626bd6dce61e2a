"""Models that are fitted to a frame in Python, by the functions that the commands call."""
