from ray._raylet import PlacementGroupID

class PlacementGroup:
    id: PlacementGroupID
    def __init__(self, id: PlacementGroupID) -> None: ...

def remove_placement_group(placement_group: PlacementGroup) -> None: ...
