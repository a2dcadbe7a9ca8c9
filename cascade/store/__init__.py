"""The raw features of users by id: written in bulk, kept up to date, read by the stage `lookup`.

    with UserStore.open("lmdb:users.lmdb") as users:
        users.append("17", "history", ["m-3", "m-9"])

A URL names a store: `lmdb:PATH` is a folder that every process of a machine maps,
`redis://HOST:PORT/DB` (or `rediss://`, `unix://PATH?db=DB`) a Redis that several machines share.
The records hold what clients of `recommend` send, so they outlive vocabularies and releases; a
store is rejected only when its users have other features.
"""

from cascade.store.backend import Backend, StoreError
from cascade.store.factory import absolute_url, open_backend
from cascade.store.records import OtherLayout
from cascade.store.users import Event, StoredUsers, UserStore, check_layout

__all__ = [
    "Backend",
    "Event",
    "OtherLayout",
    "StoreError",
    "StoredUsers",
    "UserStore",
    "absolute_url",
    "check_layout",
    "open_backend",
]
