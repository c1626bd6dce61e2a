"""Numbers on each distinct string that no encoder is needed for: chemistry, and a user's own."""
