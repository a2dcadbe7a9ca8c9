"""The sizes of a cascade from a target: what each size keeps and costs, measured, and the cheapest
that keeps enough."""
