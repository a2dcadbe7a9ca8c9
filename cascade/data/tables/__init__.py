"""Interactions, users and items in tables of one's own, described by a YAML file."""

from cascade.data.tables.source import TableSource

__all__ = ["TableSource"]
