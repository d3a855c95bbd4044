from collections.abc import Mapping, Sequence

class _Accessor:
    def get_worker_table(self) -> Sequence[bytes]: ...

class GlobalState:
    def get_draining_nodes(self) -> Mapping[str, int]: ...
    def _connect_and_get_accessor(self) -> _Accessor: ...

state: GlobalState

class GlobalState:
    def get_draining_nodes(self) -> Mapping[str, int]: ...

state: GlobalState

def actors(*, job_id: object, actor_state_name: str) -> Mapping[str, object]: ...
