"""Business rules: what a user is not to get, what alone he may get, and what nobody is to get.

They belong into retrieval. Dropped from the ten best at the end, they would leave holes; here the
next best candidates take their places, and the later stages rank what is left as they always do.

`request` reads the two tensors, `items` maps what an export knows about the items, `deny` watches
the deny list, `search` finds the candidates.
"""

from cascade.stages.filters.deny import DenyList
from cascade.stages.filters.items import DESCRIPTION, Items
from cascade.stages.filters.search import Filtered

__all__ = ["DESCRIPTION", "DenyList", "Filtered", "Items"]
