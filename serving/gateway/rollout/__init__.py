"""Rollouts: a share of the conversations goes to a new track, which is judged and taken back if worse.

state.py      what is rolled out, as a value; who goes where; every transition, without I/O
counts.py     what each track has shown      looking.py   from counts to the next state
store.py      the seam: redis_store.py for several machines, file_store.py for one
rollouts.py   a gateway's part: split, count, report, decide
operate.py    an operator's part             status.py    how it stands

Redis is imported only where a store in it is opened.
"""

from serving.gateway.rollout.rollouts import Rollouts
from serving.gateway.rollout.state import Phase, RolloutState, track_of
from serving.gateway.rollout.status import Status, TrackStatus, status_of
from serving.gateway.rollout.store import Store, StoreError, open_store

__all__ = [
    "Phase",
    "RolloutState",
    "Rollouts",
    "Status",
    "Store",
    "StoreError",
    "TrackStatus",
    "open_store",
    "status_of",
    "track_of",
]
