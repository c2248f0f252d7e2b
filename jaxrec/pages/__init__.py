"""A report as one HTML page: what was found, then the sections that show it.

`evidence`, `findings`, `profiles` and `titles` read runs and compute; every other
module is a function of what they found, and draws (`svg`, `axes`, `markup`) or writes
it.
"""
