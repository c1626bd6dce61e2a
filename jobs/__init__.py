"""Commands over the two packages, run from a checkout: `python -m jobs.NAME`."""
