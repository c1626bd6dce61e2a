"""What a trained run reads: the importance of columns, and of the atoms of a string."""
