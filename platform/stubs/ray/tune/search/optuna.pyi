from collections.abc import Mapping
from typing import Any

from ray.tune.search import Searcher

class OptunaSearch(Searcher):
    def __init__(
        self,
        *,
        space: Mapping[str, Any],
        metric: str,
        mode: str,
        sampler: Any,
        storage: Any = None,
        study_name: str | None = None,
    ) -> None: ...
