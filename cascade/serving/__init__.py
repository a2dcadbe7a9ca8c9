"""Names of earlier releases: their model.py and their start commands keep working."""
