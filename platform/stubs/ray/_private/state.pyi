class GlobalState:
    def get_max_resources_from_cluster_config(self) -> dict[str, float] | None: ...

state: GlobalState
