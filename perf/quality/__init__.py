"""`make quality`: what every stage adds, on planted and on real data, against simple baselines."""
