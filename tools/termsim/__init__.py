"""Sample terminals for the demo, the tests and the benches: the data a terminal holds at schema 0.

`python -m tools.termsim new DIR ...` on a shell, or `make_terminal(DIR, Recipe(...))` in a test.
Nothing here imports `agent`, so a mistake there cannot hide behind the same mistake here.
"""

from tools.termsim.recipe import BAD_KINDS, Recipe, RecipeError
from tools.termsim.terminal import Summary, make_terminal

__all__ = ["BAD_KINDS", "Recipe", "RecipeError", "Summary", "make_terminal"]
