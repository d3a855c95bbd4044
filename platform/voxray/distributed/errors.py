"""What Ray's errors mean: it wraps what its workers raise, and has errors of its own for what was lost."""

from __future__ import annotations

from typing import TypeVar

from voxray.core.bulkhead import causes

_Error = TypeVar("_Error", bound=BaseException)


def find_raised(error: BaseException, *kinds: type[_Error]) -> _Error | None:
    """The error of one of those kinds that a worker raised, out of Ray's wrappers, which are of its class, too."""
    from ray.exceptions import RayError

    found = (one for one in _outermost_first(error) if isinstance(one, kinds) and not isinstance(one, RayError))
    return next(found, None)


def is_loss(error: BaseException) -> bool:
    """Whether a process was lost, or what it had made; what the work itself raised is no loss."""
    from ray.exceptions import RayError, RayTaskError

    return any(isinstance(one, RayError) and not isinstance(one, RayTaskError) for one in _outermost_first(error))


def _outermost_first(error: BaseException) -> list[BaseException]:
    return list(causes(error))[::-1]
