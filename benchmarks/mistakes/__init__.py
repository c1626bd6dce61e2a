"""Mistakes that people reported elsewhere, made here: dirty files, odd frames, slips in a config.

`kinds` says what a mistake is and how its end is judged; `texts`, `tables`, `strings`, `frames`
and `configs` list them, each with its source; `polymers` is a whole table as the public ones are.
"""
