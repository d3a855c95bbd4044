from collections.abc import Mapping, Sequence
from typing import Any

class Node:
    all_processes: Mapping[str, Sequence[Any]]

class Cluster:
    address: str
    def __init__(self, *, initialize_head: bool = False, head_node_args: Mapping[str, Any] = ...) -> None: ...
    def add_node(self, **node_args: Any) -> Node: ...
    def shutdown(self) -> None: ...
