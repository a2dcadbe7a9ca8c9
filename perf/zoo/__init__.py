"""Every registered model, trained on the same rows, judged, served and timed."""
