"""A trained network and gradient boosting as one model: trees, columns, weights."""
