"""Lost workers: which losses count against an item of work, and what is said of an item that is set aside.

A worker that dies while it has an item may have died of it, as for want of memory. A worker that goes with its node
has not: nodes are preempted and fail, so an item is begun again after that as often as it takes. Ray's own counts of
retries do not tell the two apart, and have no place for what was under way in an actor, so each process notes an item
in the key-value store of Ray's control service (GCS) before it begins, and takes the note away at the end.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

MAX_DEATHS = 3
"""An item whose worker died so often, on nodes that stayed, is set aside."""
_NAMESPACE = b"voxray"
_ANSWER_S = 5.0


@dataclass(frozen=True)
class Attempt:
    """One that was begun and not ended: the ids of its node and its worker, empty where no note was left."""

    node: str = ""
    worker: str = ""


class Notes:
    """Which items of one piece of work are under way, by their numbers; a copy in any process writes to the same."""

    def __init__(self) -> None:
        self._name = uuid4().hex

    def begin(self, number: int) -> None:
        """Notes that this process begins the item."""
        import ray
        from ray.experimental.internal_kv import _internal_kv_put

        context = ray.get_runtime_context()
        note = f"{context.get_node_id()} {context.get_worker_id()}".encode()
        with suppress(Exception):  # a control service that restarts: the item is not to blame
            _internal_kv_put(self._key(number), note, namespace=_NAMESPACE)

    def end(self, number: int) -> None:
        """Notes that the item has ended, whatever came of it."""
        from ray.experimental.internal_kv import _internal_kv_del

        with suppress(Exception):
            _internal_kv_del(self._key(number), namespace=_NAMESPACE)

    def take(self, number: int) -> Attempt | None:
        """The attempt at an item whose worker is lost, which is forgotten; None where none was noted."""
        from ray.experimental.internal_kv import _internal_kv_get

        note = None
        with suppress(Exception):
            note = _internal_kv_get(self._key(number), namespace=_NAMESPACE)
        if not note:
            return None
        self.end(number)
        return Attempt(*note.decode().split())

    def any_begun(self) -> bool:
        """Whether any item is under way."""
        from ray.experimental.internal_kv import _internal_kv_list

        return bool(_internal_kv_list(self._key(), namespace=_NAMESPACE))

    def close(self) -> None:
        """Forgets every item."""
        from ray.experimental.internal_kv import _internal_kv_del

        with suppress(Exception):
            _internal_kv_del(self._key(), del_by_prefix=True, namespace=_NAMESPACE)

    def _key(self, number: int | None = None) -> bytes:
        return f"under-way:{self._name}:{'' if number is None else number}".encode()


@dataclass(frozen=True)
class Deaths:
    """The deaths that count against one item."""

    nodes: tuple[str, ...]
    """Where: the address of each node, empty where it is not known."""
    of_memory: bool = False
    """Whether Ray itself ended one of the workers for want of memory."""

    def __bool__(self) -> bool:
        return bool(self.nodes)

    @property
    def too_many(self) -> bool:
        """Whether the item is to be set aside."""
        return len(self.nodes) >= MAX_DEATHS

    def __str__(self) -> str:
        """The story in a sentence."""
        counted = Counter(node for node in self.nodes if node)
        where = ", ".join(f"{node} ({times} x)" if times > 1 else node for node, times in counted.items())
        places = f", on node{'s'[: len(counted) != 1]} {where}" if counted else ""
        why = "for want of memory, as Ray reports" if self.of_memory else "probably for want of memory"
        return f"the worker that had it died {len(self.nodes)} times{places}, {why}."


def deaths(attempts: Sequence[Attempt]) -> Deaths:
    """The attempts that count: those on nodes that are there still and are not being drained."""
    if not attempts:
        return Deaths(())
    staying = _staying_nodes()
    # Ray takes a quarter of a minute to find a node lost whose raylet was killed: such a one does not answer.
    named = {one.node for one in attempts if one.node in staying}
    answering = {"", *(node for node in named if _answers(*staying[node]))}
    counted = [one for one in attempts if one.node in answering]
    lacking = _lacked_memory() if len(counted) >= MAX_DEATHS else frozenset()
    nodes = tuple(staying[one.node][0] if one.node else "" for one in counted)
    return Deaths(nodes, of_memory=any(one.worker in lacking for one in counted))


def _staying_nodes() -> dict[str, tuple[str, int]]:
    """The raylets' addresses and ports of the nodes that live and are not to go, by their ids."""
    import ray
    from ray._private.state import state

    going = state.get_draining_nodes()
    return {
        node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"])
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in going
    }


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_ANSWER_S).close()
    except OSError:
        return False
    return True


def _lacked_memory() -> frozenset[str]:
    """The workers that Ray's memory monitor has ended, by their ids."""
    from ray._private.state import state
    from ray.core.generated import common_pb2, gcs_pb2

    with suppress(Exception):  # of use for the sentence alone
        table = map(gcs_pb2.WorkerTableData.FromString, state._connect_and_get_accessor().get_worker_table())
        return frozenset(
            one.worker_address.worker_id.hex() for one in table if one.exit_type == common_pb2.NODE_OUT_OF_MEMORY
        )
    return frozenset()
