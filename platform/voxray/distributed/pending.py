"""What a cluster has been asked for and has no room for yet, by Ray's own account of its state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


def pending_requests(address: str) -> str:
    """``2 x {GPU: 1}, 1 x {CPU: 4}``, of all jobs of the cluster at a dashboard's address; empty where none waits."""
    from ray.util.state import list_placement_groups, list_tasks

    asked: dict[str, Any] = {"address": address, "detail": True, "raise_on_missing_output": False}
    groups = list_placement_groups(filters=[("state", "=", "PENDING")], **asked)
    # An actor that waits is there as the task that makes it.
    tasks: list[Any] = list_tasks(filters=[("state", "=", "PENDING_NODE_ASSIGNMENT")], **asked)
    bundles = (bundle.get("unit_resources") or {} for group in groups for bundle in group.bundles or ())
    return as_text([*bundles, *(one.required_resources or {} for one in tasks)])


def as_text(requests: Iterable[Mapping[str, float]]) -> str:
    """Equal requests together, the most frequent first; shares of a placement group's own names are left out."""
    counted = Counter(
        ", ".join(f"{name}: {amount:g}" for name, amount in sorted(request.items()) if amount)
        for request in requests
        if request and not any("_group_" in name for name in request)
    )
    return ", ".join(f"{count} x {{{text}}}" for text, count in counted.most_common() if text)
