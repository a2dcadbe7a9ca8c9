"""Ask the cascade for recommendations over gRPC.

A client needs numpy and tritonclient alone. The server tells it the features of a user, so there
is no schema file to hand out:

    with Recommender("127.0.0.1:8001") as recommender:
        answer = recommender.recommend({"I1": 3, "C1": "68fd1e64"})
        print(answer.item_ids, answer.scores)

`AsyncRecommender` is the same under asyncio. On the command line: `python -m clients.recommend`
for a look, `python -m clients.batch` for a Parquet file of users.
"""

from cascade.client.conversation import Retry
from cascade.client.errors import DeadlineExceeded, InvalidInput, RecommendError, Unavailable
from cascade.client.layout import Layout, Recommendation
from cascade.client.recommender import Recommender
from cascade.client.recommender_async import AsyncRecommender
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
