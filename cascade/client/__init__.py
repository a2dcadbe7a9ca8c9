"""Ask the cascade for recommendations over gRPC.

A client needs numpy and tritonclient alone. It reads the features of a user from the server, so
there is no schema file to hand out:

    with Recommender("127.0.0.1:8001") as recommender:
        answer = recommender.recommend({"I1": 3, "C1": "68fd1e64"})
        print(answer.item_ids, answer.scores)

`AsyncRecommender` is the same under asyncio. From the command line of a checkout:
`python -m clients.recommend` prints a table, `python -m clients.batch` answers a Parquet file.

A call is `plan` (users -> tensors), `Session` (retries and the deadline) and `merge` (answers ->
recommendations); a `Transport` sends the requests.
"""

from cascade.client.errors import DeadlineExceeded, InvalidInput, RecommendError, Unavailable
from cascade.client.layout import Layout
from cascade.client.plan import Recommendation
from cascade.client.recommender import AsyncRecommender, Recommender
from cascade.client.session import Retry
from cascade.client.tls import Tls

__all__ = [
    "AsyncRecommender",
    "DeadlineExceeded",
    "InvalidInput",
    "Layout",
    "RecommendError",
    "Recommendation",
    "Recommender",
    "Retry",
    "Tls",
    "Unavailable",
]
