"""Business rules: items that a request excludes, values that it allows, and items denied to all.

They apply in retrieval. Items dropped from the ten best at the end would leave holes; here the next
best candidates take their places, and the later stages rank them as always.

`items` maps the ids and values of the catalogue's items, `deny` watches the deny list, `search`
finds the candidates.
"""

from cascade.stages.filters.deny import DenyList
from cascade.stages.filters.items import DESCRIPTION, FilterItems
from cascade.stages.filters.search import Filtered

__all__ = ["DESCRIPTION", "DenyList", "FilterItems", "Filtered"]
