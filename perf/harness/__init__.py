"""What the programs of `perf` share: requests, load, figures and the files of results."""
