"""Training of the three models of a cascade: `python -m cascade.training`."""
