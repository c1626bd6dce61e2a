"""A finished run: predictions in raw units, reward, export."""
