"""Intervals, sets and probabilities that hold what they promise on rows that nobody trained on."""
