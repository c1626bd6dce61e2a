"""The commands, as the console scripts and `python -m jobs...` run them.

This is imported before torch, since OpenMP reads how its threads wait when it is loaded. GNU's
(torch's on Linux) lets a thread that waits for work spin for milliseconds, which on a machine with
other work takes the cores from those that have some: of two trainings side by side on two cores,
each took four times as long as one after the other, and more. A shorter spin costs one alone hardly
anything, and lets two share the cores (benchmarks/results/LOG.md). What the user has set stays.

Polars reads many row groups of a Parquet file ahead of the one that is worked on; one is enough
here, and memory then grows no more with the file.
"""

import os

# rounds of the processor's pause instruction, some tenths of a millisecond; the default is thirty
# times as many
SPINS = "10000"

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
os.environ.setdefault("POLARS_ROW_GROUP_PREFETCH_SIZE", "1")
