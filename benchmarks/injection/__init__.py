"""Attacks on the commands, for `python -m benchmarks faults`: what is done to them, and verdicts.

`processes` runs a command in a fork under conditions that it does not expect; `scene` is the small
project that each case gets a copy of; `cases` is what a case is and how its end is judged;
`compare` says whether two results are the same; `pool` plays cases side by side. Every other file
holds the attacks of one kind.
"""
