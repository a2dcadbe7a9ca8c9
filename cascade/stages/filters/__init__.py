"""Business rules: items that a request excludes, values that it allows, and items denied to all.

They apply in retrieval. Items dropped from the ten best at the end would leave holes; here the next
best candidates take their places, and the later stages rank them as always.
"""
