"""What a table's columns may be for, guessed with reasons, and tried on the table itself."""
