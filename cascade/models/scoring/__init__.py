"""Models that score (user, item) rows: prerankers and rankers."""
