"""Releases of a repository: publishing, rolling back, sharing traffic, refreshing the catalogue."""
