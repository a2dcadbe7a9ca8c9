"""What happens when things go wrong, or change, under load: `python -m tests.resilience`."""
