"""What stops and losses cost a training: nodes that are killed or drained, on a cluster of processes on this machine.

    python benchmarks/training_stops.py [killed drained lacking]

`killed`: a node with one of two workers is killed and not replaced; ``--workers 1:2`` goes on with the other.
`drained`: a node is drained as by a spot notice, with 20 s left. `lacking`: two workers are asked for, and a node is
killed; the training ends by ``--wait-nodes``. Printed are seconds from the event to the first new optimizer steps (by
the run's folder), the steps at that time, seconds blocked per checkpoint, and what was said.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "platform")]

from support.clusters import free_port  # noqa: E402
from support.tiny_training import made_store, segmentation_recipe, train_silently  # noqa: E402
from voxray.core.errors import ResourceError  # noqa: E402
from voxray.core.progress import PlainProgress  # noqa: E402
from voxray.training.checkpoint import find_state  # noqa: E402

NODE_CPUS = 3
"""Of each of two nodes: room for one worker of two CPUs and its readers."""
STEPS = 40
PATIENCE_S = 300.0

_Nodes = list["subprocess.Popen[bytes]"]

if TYPE_CHECKING:
    import psutil


@contextmanager
def cluster(folder: Path) -> Iterator[_Nodes]:
    """A head without room for workers, and two nodes with room for one each."""
    import psutil
    from ray.util import get_node_ip_address

    address = f"{get_node_ip_address()}:{free_port()}"
    head = ["--head", f"--port={address.rpartition(':')[2]}", "--num-cpus=1", "--include-dashboard=false"]
    head.append(f"--ray-client-server-port={free_port()}")
    node = [f"--address={address}", f"--num-cpus={NODE_CPUS}"]
    started: _Nodes = []
    try:
        for number, words in enumerate((head, node, node)):
            log = folder / f"node_{number}.log"
            begin = ["start", *words, "--object-store-memory=150000000", "--disable-usage-stats", "--block"]
            with log.open("wb") as stream:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "ray.scripts.scripts", *begin],
                        stdout=stream,
                        stderr=stream,
                        start_new_session=True,
                    )
                )
            _wait(lambda log=log: b"Ray runtime started" in log.read_bytes())  # type: ignore[misc]
        os.environ["RAY_ADDRESS"] = address
        yield started[1:]
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        family = [one for each in started if each.poll() is None for one in _family(each.pid)]
        for one in reversed(family):
            one.terminate()
        for one in psutil.wait_procs(family, timeout=20)[1]:
            one.kill()


def kill(node: subprocess.Popen[bytes]) -> None:
    """The node and all that runs on it, at once."""
    for one in _family(node.pid):
        one.kill()
    node.wait()


def _family(pid: int) -> list[psutil.Process]:
    import psutil

    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def drain(_: subprocess.Popen[bytes]) -> None:
    """A notice that a node with a worker will be taken away in 20 s."""
    import ray

    node = next(one for one in ray.nodes() if one["Resources"].get("CPU") == NODE_CPUS)
    words = ["drain-node", "--address", os.environ["RAY_ADDRESS"], "--node-id", node["NodeID"]]
    words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    words += ["--deadline-remaining-seconds", "20"]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *words], check=True)


def measured(name: str, event: Callable[[subprocess.Popen[bytes]], None], *, at_least: int | None) -> None:
    """One training on a cluster to which something happens in its second epoch."""
    with tempfile.TemporaryDirectory() as scratch, cluster(Path(scratch)) as nodes:
        folder = Path(scratch)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        recipe = segmentation_recipe("optim.epochs=12", f"optim.steps_per_epoch={STEPS}")
        store, run = made_store(folder / "store", recipe), folder / "run"
        times: dict[str, float] = {}
        steps: dict[str, int] = {}

        def disturb() -> None:
            _wait(lambda: _steps(run) > STEPS)
            steps["before"], times["event"] = _steps(run), time.monotonic()
            event(nodes[1])
            steps["after"] = _steps(run)
            before = steps["after"]
            _wait(lambda: _steps(run) > before + 2)
            times["again"] = time.monotonic()

        thread = threading.Thread(target=disturb, daemon=True)
        thread.start()
        begin, said = time.monotonic(), PlainProgress(sys.stdout)
        minutes = 1e-4 if name != "drained" else 10.0
        try:
            print(train_silently(store.uri, recipe, run, workers=2, min_workers=at_least, progress=said,
                                 checkpoint_minutes=minutes))  # fmt: skip
        except ResourceError as error:
            print(f"refused after {time.monotonic() - begin:.0f} s: {error}")
        rows = json.loads((run / "history.json").read_text())
        blocked, number = (sum(row[key] for row in rows) for key in ("checkpoint_s", "num_checkpoints"))
        print(f"{name}: {steps}, {times.get('again', float('nan')) - times['event']:.1f} s to new steps")
        print(f"{name}: {blocked / max(number, 1) * 1000:.1f} ms blocked per checkpoint, {number:.0f} checkpoints")


def _steps(run: Path) -> int:
    state = find_state(run)
    return state.epochs_done * STEPS + state.steps_done if state else 0


def _wait(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def main() -> None:
    """The named measurements, or all."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "VOXRAY_WAIT_NODES": "90s"}
    wanted = sys.argv[1:] or ["killed", "drained", "lacking"]
    if "killed" in wanted:
        measured("killed", kill, at_least=1)
    if "drained" in wanted:
        measured("drained", drain, at_least=1)
    if "lacking" in wanted:
        measured("lacking", kill, at_least=None)


if __name__ == "__main__":
    main()
