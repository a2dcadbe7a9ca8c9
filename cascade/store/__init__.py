"""The raw features of users by id: written in bulk, kept up to date, read by the stage `lookup`.

    with UserStore.open("lmdb:users.lmdb") as users:
        users.append("17", "history", ["m-3", "m-9"])

A store is named by a URL: `lmdb:PATH` is a folder that every process of a machine maps,
`redis://HOST:PORT/DB` (or `rediss://`, `unix://PATH?db=DB`) a Redis that several machines share.
What stands in it is what clients of `recommend` send, so it outlives every vocabulary and release
and is refused only where the features are other ones.

`layout` says which features, `records` turns users into bytes, `embedded` and `redis_store` keep
bytes, `users` puts them together, `breaker` spares a server that is gone.
"""

from cascade.store.backend import Backend, StoreError, open_backend
from cascade.store.layout import OtherLayout, UserLayout
from cascade.store.users import Event, Users, UserStore

__all__ = [
    "Backend",
    "Event",
    "OtherLayout",
    "StoreError",
    "UserLayout",
    "UserStore",
    "Users",
    "open_backend",
]
