"""Work on many items, in this process and on Ray actors."""

from __future__ import annotations

import operator
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from support.clusters import fixed_cluster, growing_cluster
from voxray.core.errors import ConfigError, DataError, ResourceError
from voxray.core.progress import SilentProgress
from voxray.distributed.capacity import Capacity, NodeShape
from voxray.distributed.parallel import Shared, TaskOptions, open_pool, pool_map, pool_shape, task_map

SILENT = SilentProgress()


def doubling() -> partial[int]:
    return partial(operator.mul, 2)


def test_one_worker_is_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with open_pool(1, progress=SILENT) as pool:
        assert not pool.on_ray
        assert list(pool_map(doubling, [3, 1, 2], pool)) == [6, 2, 4]
        assert list(pool_map(doubling, [], pool)) == []


def test_several_items_are_under_way_at_once_in_the_items_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    both = threading.Barrier(2, timeout=60)

    def make() -> Callable[[int], int]:
        def work(item: int) -> int:
            both.wait()
            return item * 10

        return work

    with open_pool(1, progress=SILENT) as pool:
        assert list(pool_map(make, range(4), pool, at_once=2)) == [0, 10, 20, 30]
    with (
        pytest.raises(ConfigError, match="workers must be at least 1, got 0"),
        open_pool(0, progress=SILENT),
    ):
        pass


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(ConfigError, match="no such device; use auto"),
        open_pool(1, progress=SILENT, device="abacus"),
    ):
        pass
    with (
        pytest.raises(ResourceError, match="CUDA devices; use cpu"),
        open_pool(1, progress=SILENT, device="cuda:99"),
    ):
        pass


def test_a_pool_is_sized_by_nodes_that_may_still_come() -> None:
    from_zero = Capacity((NodeShape(4),), (NodeShape(16, 1),) * 4)
    assert pool_shape(from_zero, 4, "auto") == ("cuda", 16.0)
    assert pool_shape(from_zero, 5, "auto") == ("cpu", 8.0)  # two on a node
    assert pool_shape(from_zero, 1, "cpu") == ("cpu", 16.0)
    assert pool_shape(Capacity((NodeShape(1),), is_known=False), 2, "cuda") == ("cuda", 1.0)
    with pytest.raises(
        ResourceError, match=r"5 workers on CUDA need a GPU and a CPU each, the cluster can have 4 GPUs \(1"
    ):
        pool_shape(from_zero, 5, "cuda")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_from_zero_nodes_a_pool_makes_them_come_and_says_what_it_waits_for(tmp_path: Path) -> None:
    program = """
        import os
        from voxray.core.progress import SilentProgress
        from voxray.distributed import watchdog
        from voxray.distributed.capacity import cluster_capacity
        from voxray.distributed.parallel import open_pool, pool_map

        watchdog.SAY_EVERY_S = 0.5

        class Heard(SilentProgress):
            def say(self, line):
                print(line, flush=True)

        def make():
            import ray
            node = ray.get_runtime_context().get_node_id()
            return lambda item: (item, node)

        with open_pool(2, progress=Heard()) as pool:
            print(cluster_capacity(), pool.num_cpus, flush=True)
            found = sorted(pool_map(make, range(4), pool))
            assert [item for item, _ in found] == [0, 1, 2, 3]
            nodes = {node for _, node in found}
            assert not any(node.endswith("00000") for node in nodes), nodes  # none on the head
        """
    with growing_cluster(tmp_path, {"cpu": {"resources": {"CPU": 2}, "max_workers": 2}}) as address:
        environment = {**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
        ran = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0] == "1 node of 1 CPU, up to 2 more nodes of 2 CPUs 2.0", ran.stdout
    assert any(line.startswith("waiting for ") and " x {CPU: 2}; " in line for line in lines), ran.stdout


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_a_killed_worker_costs_no_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    mark = tmp_path / "killed"

    def make() -> Callable[[int], int]:
        def work(item: int) -> int:
            if item == 3 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return item * 10

        return work

    with open_pool(2, progress=SILENT, device="auto") as pool:
        assert pool.on_ray
        assert sorted(pool_map(make, range(8), pool)) == [0, 10, 20, 30, 40, 50, 60, 70]
    assert mark.exists()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_what_the_work_raises_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def make() -> Callable[[int], int]:
        def work(item: int) -> int:
            raise ConfigError(f"item {item}: not wanted.")

        return work

    with (
        open_pool(2, progress=SILENT) as pool,
        pytest.raises(ConfigError, match=r"^item \d: not wanted\.$"),
    ):
        list(pool_map(make, [1, 2], pool))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_what_kills_every_worker_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    class FrozenError(Exception):
        """One that cannot be unpacked, as some libraries' cannot."""

        def __init__(self, one: str, two: str) -> None:
            super().__init__(f"{one} {two}")

    def make() -> Callable[[int], int]:
        def work(item: int) -> int:
            if item == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return item * 10

        return work

    def fail() -> Callable[[int], int]:
        def work(item: int) -> int:
            raise FrozenError("a", f"library {item}")

        return work

    with open_pool(2, progress=SILENT) as pool:
        found = sorted(pool_map(make, range(6), pool, at_once=2, lost=lambda item, _: -item))
        assert found == [-3, 0, 10, 20, 40, 50]
        with pytest.raises(RuntimeError, match=r"FrozenError: a library \d"):
            list(pool_map(fail, range(2), pool, lost=lambda item, _: -item))


NODES_THAT_GO = """
    import os, sys, time
    from voxray.core.errors import ResourceError
    from voxray.core.progress import SilentProgress
    from voxray.distributed.cluster import connect
    from voxray.distributed.parallel import TaskOptions, open_pool, pool_map, task_map

    def work(item):
        time.sleep(0.3)
        return item

    def told(results):
        for number, result in enumerate(results):
            print(number, flush=True)
            yield result

    silent = SilentProgress()
    with connect():
        try:
            list(task_map(work, range(4), progress=silent))
        except ResourceError as error:
            print(error, flush=True)
        del os.environ["VOXRAY_WAIT_NODES"]
        sys.stdin.readline()
        tasks = task_map(work, range(16), TaskOptions(scheduling="SPREAD"), progress=silent)
        print(sorted(item for item, _ in told(tasks)), flush=True)
        sys.stdin.readline()
    with open_pool(2, progress=silent) as pool:
        print(sorted(told(pool_map(lambda: work, range(16), pool, at_once=2))), flush=True)
    """


@pytest.mark.ray
@pytest.mark.slow
def test_without_nodes_tasks_end_and_nodes_that_go_cost_no_item() -> None:
    with fixed_cluster() as cluster:
        environment = {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(NODES_THAT_GO)],
            env={**environment, "VOXRAY_WAIT_NODES": "2s"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as ran:
            assert ran.stdin is not None
            assert ran.stdout is not None
            first = ran.stdout.readline()
            assert re.match(r"the cluster has lacked \d x {CPU: 1}; no node is starting for \d s, and", first), first
            cluster.add(1)
            for _ in range(2):  # tasks, then a pool
                cluster.add(1)
                ran.stdin.write("\n")
                ran.stdin.flush()
                lines = [ran.stdout.readline() for _ in range(4)]
                cluster.lose(-1)
                lines += [ran.stdout.readline() for _ in range(13)]
                assert lines == [*(f"{number}\n" for number in range(16)), f"{list(range(16))}\n"]
            assert ran.wait(60) == 0


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_a_task_whose_process_dies_is_tried_again_and_then_lost(tmp_path: Path) -> None:
    def work(item: int) -> int:
        with (tmp_path / str(item)).open("a") as file:
            file.write("x")
        if item == 3 or (item == 2 and (tmp_path / "2").read_text() == "x"):
            os.kill(os.getpid(), signal.SIGKILL)
        return item * 10

    found = dict(task_map(work, range(5), lost=lambda item, _: -item))
    assert found == {0: 0, 1: 10, 2: 20, 3: -3, 4: 40}
    assert [len((tmp_path / str(item)).read_text()) for item in range(5)] == [1, 1, 2, 3, 1]


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_what_a_task_raises_arrives_as_itself_and_cancels_the_others(tmp_path: Path) -> None:
    begun, stopped = tmp_path / "begun", tmp_path / "stopped"

    def work(item: int) -> int:
        if item == 0:
            try:
                begun.touch()
                while True:  # Ray's interruption is one of Python, and ends no long sleep
                    time.sleep(0.05)
            except KeyboardInterrupt:
                stopped.touch()
                raise
        while not begun.exists():
            time.sleep(0.01)
        raise DataError("a.b", "it is broken.", remedy="Mend it.")

    ticks: list[None] = []
    options = TaskOptions(at_once=2, grace_s=60)
    results = task_map(work, range(2), options, tick=lambda: ticks.append(None))
    with closing(results), pytest.raises(DataError, match=r"^\[a\.b\] it is broken\. Mend it\.$") as error:
        list(results)
    assert type(error.value) is DataError
    assert stopped.exists()
    assert ticks


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_shared_work_is_unpacked_once_in_a_process() -> None:
    class Counted:
        unpacked = 0

        def __init__(self) -> None:
            self.step = 10

        def __setstate__(self, state: dict[str, int]) -> None:
            self.__dict__ = state
            Counted.unpacked += 1

        def __call__(self, item: int) -> tuple[int, int]:
            time.sleep(0.01 * item / self.step)
            return os.getpid(), Counted.unpacked

    shared = Shared[Callable[[int], tuple[int, int]]](Counted())
    found = [result for _ in range(2) for _, result in task_map(shared, range(8), TaskOptions(at_once=2))]
    assert len(found) == 16
    assert {unpacked for _, unpacked in found} == {1}
    assert len({process for process, _ in found}) < 16
