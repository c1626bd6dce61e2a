"""The certificate of a training: steps of the run recomputed row by row, and compared."""
