"""A report as one HTML page: what was found, in sections, each a function of it.

Nothing here reads a file or computes a metric; see `findings` and `evidence`.
"""
