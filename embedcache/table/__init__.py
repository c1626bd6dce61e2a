"""1. The user's file, checked: canonical rows and names."""
