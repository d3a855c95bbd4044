"""Patient level: does a patient have an object at all, judged by the highest score of all the patient's findings."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64

from voxray.metrics.curves import Steps, steps
from voxray.metrics.pool import Pool


def patient_scores(
    pool: Pool, patients: Int64[np.ndarray, " s"]
) -> tuple[Float64[np.ndarray, " p"], Bool[np.ndarray, " p"]]:
    """Highest score of each patient (numbered from 0) and whether there is an object, of a pool of one class.

    A patient without a finding scores minus infinity, below all others.
    """
    scores = np.full(int(patients.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(scores, patients[pool.scans], pool.scores)
    has_object = np.zeros(len(scores), bool)
    has_object[patients[pool.objects[:, 0] > 0]] = True
    return scores, has_object


def patient_steps(
    scores: Float64[np.ndarray, " p"], has_object: Bool[np.ndarray, " p"], weights: Float64[np.ndarray, "p b"]
) -> Steps:
    """Patients with and without an object above each score; weights are of patients."""
    order = np.argsort(-scores, kind="stable")
    return steps(scores[order], has_object[order], order, weights)


def patient_weights(
    weights: Float64[np.ndarray, "s b"], patients: Int64[np.ndarray, " s"]
) -> Float64[np.ndarray, "p b"]:
    """How often each patient was drawn: as often as the first of its scans, which are drawn together."""
    _, first = np.unique(patients, return_index=True)
    drawn: Float64[np.ndarray, "p b"] = weights[first]
    return drawn
