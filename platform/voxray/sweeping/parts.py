"""Cases dealt into parts: a setting is tuned on some and judged on the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voxray.core.errors import ConfigError


def parts_of(runs: Sequence[int], patients: Sequence[str], seed: int) -> list[tuple[int, ...]]:
    """The indices of each run's cases; of one run those of two halves of its patients, drawn by the seed."""
    if len(set(runs)) > 1:
        return [tuple(index for index, run in enumerate(runs) if run == number) for number in sorted(set(runs))]
    names = sorted(set(patients))
    if len(names) < 2:
        raise ConfigError(
            f"a sweep needs two patients or more, to tune on some and score on others, and there is {len(names)}; "
            f"give more cases or folds, or tune and report on the same cases with --same-cases."
        )
    drawn = [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    halves = set(drawn[: len(drawn) // 2]), set(drawn[len(drawn) // 2 :])
    return [tuple(index for index, patient in enumerate(patients) if patient in half) for half in halves]
