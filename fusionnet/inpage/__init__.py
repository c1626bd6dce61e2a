"""A trained run inside of a web page: its weights as one text, and JavaScript that reads them.

A header in JSON says what is computed, step by step, from which arrays; their bytes are one blob in
base64. `js/` evaluates that in a browser and draws it, `reading` does the same in Python, and is
what decides how coarsely weights may be rounded.
"""
