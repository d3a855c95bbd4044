from typing import Any, Generic, TypeVar

_T = TypeVar("_T")

class DeploymentHandle(Generic[_T]):
    def options(self, *, stream: bool) -> DeploymentHandle[_T]: ...
    def __getattr__(self, method: str) -> Any: ...
