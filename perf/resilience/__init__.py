"""What a served cascade does when things go wrong: `python -m perf.resilience`."""
