"""An exported repository, judged on a held-out table of raw rows alone."""
