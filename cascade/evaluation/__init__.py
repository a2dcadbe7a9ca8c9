"""How good is it: metrics of rows and of lists, and the cascade against its own ranker."""
