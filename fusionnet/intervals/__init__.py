"""Intervals around predictions that hold what they promise on rows that nobody trained on."""
