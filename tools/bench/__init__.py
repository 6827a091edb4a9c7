"""`make bench`: figures of the agent, each beside its budget, all taken in one run.

How each figure is made is told in docs/figures.md. Nothing here is part of the product, and no
test depends on a time that was measured.
"""
