"""The servers that `perf.compare` sets side by side, and how each is asked."""
