from collections.abc import Mapping, Sequence

class _Request:
    bundle: Mapping[str, float]
    count: int

class _Demand:
    bundles_by_count: Sequence[_Request]

class _Demands:
    ray_task_actor_demand: Sequence[_Demand]
    placement_group_demand: Sequence[_Demand]

class _Launch:
    count: int

class _Status:
    resource_demands: _Demands
    pending_nodes: Sequence[object]
    pending_launches: Sequence[_Launch]

def get_cluster_status(gcs_address: str) -> _Status: ...
