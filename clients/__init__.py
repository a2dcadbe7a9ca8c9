"""Programs over the client library: `python -m clients.recommend`, `.batch`, `.events`,
`.examples`."""

from cascade.client import *  # noqa: F403
from cascade.client import __all__ as __all__
