from collections.abc import Mapping
from typing import Any

def _derive_autoscaling_config_from_ray_cr(ray_cr: Mapping[str, Any]) -> dict[str, Any]: ...
