"""The names of the tasks, which recipes, answers, evaluations and the service share; their code is `voxray.tasks`."""

from __future__ import annotations

from typing import Literal

TaskName = Literal["detection", "segmentation"]
