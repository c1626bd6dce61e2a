"""One experiment from table to predictions: what the commands call, and a notebook can call."""
