"""Measures the served cascade with perf_analyzer, and turns the records into a report."""
