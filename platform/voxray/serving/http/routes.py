"""The doors beside the native API: each is a router over the same service."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter

from voxray.serving.http import kserve, monai_label, page
from voxray.serving.http.native import GetOwner, GetService

ROUTERS: tuple[Callable[[GetService, GetOwner], APIRouter], ...] = (monai_label.router, kserve.router, page.router)
