"""`python -m cascade.data describe`: what a data set holds, and what is wrong with it."""

from cascade.data.describe.command import main

__all__ = ["main"]
