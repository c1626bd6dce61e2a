"""What may be chosen for one patient: the space of materials and formulations, and the search in
it.
"""
