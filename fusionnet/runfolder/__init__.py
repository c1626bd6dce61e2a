"""A run folder as a place: whose it is, which files are its own, and who trains in it.

No torch: a command refuses a folder before it imports what takes seconds.
"""
