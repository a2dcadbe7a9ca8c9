"""Metrics of rows and of lists, the cascade stage by stage, and releases against each other."""
