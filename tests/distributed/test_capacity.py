"""What a cluster can hold: its nodes, and what its autoscaler may add; read from a real autoscaler's file, too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from voxray.core.errors import ConfigError
from voxray.distributed.capacity import (
    Capacity,
    NodeShape,
    NodeType,
    NodeTypes,
    capacity,
    node_types,
    stated_node_types,
)

HEAD, CPU, GPU = NodeShape(1), NodeShape(2), NodeShape(16, 1)
REPOSITORY = Path(__file__).resolve().parents[2]


def test_possible_nodes_are_those_that_are_not_there_yet() -> None:
    types = NodeTypes((NodeType("cpu", CPU, 2), NodeType("gpu", GPU, 3)), max_workers=4)
    assert capacity([HEAD], types).possible == (CPU, CPU, GPU, GPU)  # 4 workers in all
    assert capacity([HEAD, CPU, GPU], types).possible == (CPU, GPU)
    assert capacity([HEAD, GPU, GPU, GPU, GPU], types).possible == ()


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    present=st.lists(st.integers(0, 3), max_size=8),
    most=st.none() | st.integers(0, 12),
)
def test_never_more_nodes_than_the_types_and_the_cluster_allow(
    counts: list[int], present: list[int], most: int | None
) -> None:
    types = tuple(NodeType(str(n), NodeShape(n + 2), count) for n, count in enumerate(counts))
    here = [HEAD, *(NodeShape(n + 2) for n in present)]
    found = capacity(here, NodeTypes(types, most))
    assert found.present == tuple(here)
    if found.possible and most is not None:
        assert len(found.nodes) - 1 <= most
    for one in types:
        assert found.possible.count(one.shape) <= max(0, one.max_nodes - here.count(one.shape))


def test_node_types_of_the_cluster_file_that_ships() -> None:
    config = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    found = node_types(config)
    assert found.max_workers == config["max_workers"]
    assert all(one.max_nodes > 0 and one.name != config["head_node_type"] for one in found.workers)
    assert any(one.shape.gpus > 0 for one in found.workers)


def test_node_types_that_a_user_states() -> None:
    text = json.dumps({"gpu": {"resources": {"CPU": 16, "GPU": 1}, "max_workers": 8}})
    assert stated_node_types(text) == NodeTypes((NodeType("gpu", GPU, 8),))
    for wrong in ("16 CPUs", "[]", '{"gpu": 3}', '{"gpu": {"resources": {"CPU": "many"}, "max_workers": 1}}'):
        with pytest.raises(ConfigError, match=r"^VOXRAY_NODE_TYPES: is not a JSON object of node types .*; write"):
            stated_node_types(wrong)


def test_a_capacity_in_words() -> None:
    assert str(Capacity((HEAD,))) == "1 node of 1 CPU"
    assert str(Capacity((HEAD,), (GPU,) * 8)) == "1 node of 1 CPU, up to 8 more nodes of 16 CPUs and 1 GPU"
    assert str(Capacity((CPU, CPU), is_known=False)) == "2 nodes of 2 CPUs, and whatever nodes its autoscaler adds"
