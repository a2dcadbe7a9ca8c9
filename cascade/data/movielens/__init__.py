"""`--data movielens:PATH`: ratings as impressions in the order of time."""

from cascade.data.movielens.source import GENRES, HISTORY, MovieLens, schema

__all__ = ["GENRES", "HISTORY", "MovieLens", "schema"]
