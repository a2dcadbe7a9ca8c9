"""Retrievers: the score of a user and an item is the dot product of two vectors."""
