"""Confined calls: bounds that hold, ends that are told apart, and nothing that is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from voxray.core.errors import DataError, ResourceError
from voxray.serving.intake.confined import _FORKER, CallBounds, CallEndedError, call, warm_up
from voxray.serving.intake.upload_reading import practise

BOUNDS = CallBounds(memory_bytes=256 << 20, seconds=60.0, file_bytes=1 << 20)


def made(name: str, bounds: CallBounds = BOUNDS, **arguments: Any) -> Any:
    return asyncio.run(call(f"serving.intake.misbehaving.{name}", arguments, bounds))


def reason(name: str, bounds: CallBounds = BOUNDS, **arguments: Any) -> str:
    with pytest.raises(CallEndedError) as raised:
        made(name, bounds, **arguments)
    return raised.value.reason


def test_answers_and_refusals_come_back() -> None:
    assert made("echo", number=7) == 7
    with pytest.raises(DataError, match="A sentence") as raised:
        made("refuse")
    assert (raised.value.code, raised.value.remedy) == ("some.code", "A remedy.")


def test_nothing_that_a_worker_prints_is_heard(capfd: pytest.CaptureFixture[str]) -> None:
    assert made("echo", number=1) == 1
    assert reason("crash") == "died"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["crash", "abort", "leave"])
def test_a_worker_that_dies(name: str) -> None:
    assert reason(name) == "died"


def test_a_full_disk_is_not_the_fault_of_the_upload() -> None:
    with pytest.raises(ResourceError, match="disk is full"):
        made("run_out_of_disk")


def test_an_error_that_nobody_foresaw_says_nothing_of_the_file() -> None:
    with pytest.raises(CallEndedError) as raised:
        made("fail", text="SECRET")
    assert raised.value.reason == "died"
    assert "SECRET" not in repr(raised.value)


def test_a_worker_that_wants_too_much_memory_or_is_killed_for_it() -> None:
    assert made("eat", num_bytes=64 << 20) == 0
    assert reason("eat", num_bytes=512 << 20) == "too_large"
    assert reason("be_killed") == "too_large"


@pytest.mark.parametrize("name", ["hang", "spin"])
def test_a_worker_that_does_not_end(name: str) -> None:
    start = time.monotonic()
    assert reason(name, BOUNDS._replace(seconds=0.3)) == "too_slow"
    assert time.monotonic() - start < 300  # left alone, it goes on for an hour


def test_a_worker_cannot_fill_the_disk_or_its_caller(tmp_path: Path) -> None:
    assert made("write", path=str(tmp_path / "small"), num_bytes=1 << 20) is None
    assert reason("write", path=str(tmp_path / "large"), num_bytes=4 << 20) == "died"
    assert (tmp_path / "large").stat().st_size <= 1 << 20
    assert reason("flood", BOUNDS._replace(memory_bytes=1 << 30)) == "died"


def test_a_worker_sees_no_secrets_and_has_not_heard_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    _FORKER.stop()
    monkeypatch.setenv("VOXRAY_TOKEN", "secret")
    assert "VOXRAY_TOKEN" not in made("environment")
    modules = made("modules")
    assert "pydicom" in modules
    assert not {"ray", "torch", "fastapi", "mlflow", "monai"} & set(modules)


def gone(process: int, *, within_s: float) -> bool:
    """Whether a process ends in time."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text():
                time.sleep(0.02)
                continue
        return True
    return False


@pytest.fixture
def no_trail() -> Iterator[None]:
    asyncio.run(warm_up())
    before = num_open()
    yield
    asyncio.run(warm_up())  # after which a worker waits again, as one does before
    assert num_open() == before


def num_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def worker_in(path: Path) -> int:
    until = time.monotonic() + 100
    while time.monotonic() < until:
        if path.exists():
            return int(path.read_text())
        time.sleep(0.01)
    raise AssertionError("the worker did not start")


@pytest.mark.usefixtures("no_trail")
def test_a_worker_dies_with_the_call_that_is_cancelled(tmp_path: Path) -> None:
    async def main() -> int:
        await warm_up()
        task = asyncio.create_task(
            call("serving.intake.misbehaving.hang_and_say", {"path": str(tmp_path / "pid")}, BOUNDS)
        )
        worker = await asyncio.to_thread(worker_in, tmp_path / "pid")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return worker

    worker = asyncio.run(main())
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_worker_dies_with_the_process_that_called(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from voxray.serving.intake.confined import CallBounds, call\n"
        "bounds = CallBounds(1 << 28, 600.0, 1 << 20)\n"
        "asyncio.run(call('serving.intake.misbehaving.hang_and_say', {'path': sys.argv[1]}, bounds))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "pid")], env=environment) as caller:
        worker = worker_in(tmp_path / "pid")
        caller.send_signal(signal.SIGKILL)
    assert gone(worker, within_s=100)


@pytest.mark.usefixtures("no_trail")
def test_calls_run_beside_each_other() -> None:
    async def main() -> list[Any]:
        await warm_up()
        slow = [call("serving.intake.misbehaving.hang", {}, BOUNDS._replace(seconds=1.0)) for _ in range(4)]
        quick = [call("serving.intake.misbehaving.echo", {"number": n}, BOUNDS) for n in range(20)]
        return await asyncio.gather(*slow, *quick, return_exceptions=True)

    results = asyncio.run(main())
    assert [getattr(result, "reason", None) for result in results[:4]] == ["too_slow"] * 4
    assert results[4:] == list(range(20))


def test_a_forker_that_died_under_a_call_is_started_again_for_the_next() -> None:
    async def main() -> tuple[Any, Any]:
        await warm_up()
        slow = asyncio.create_task(call("serving.intake.misbehaving.nap", {"seconds": 2.0}, BOUNDS))
        await asyncio.sleep(0.5)
        assert _FORKER._process is not None
        _FORKER._process.kill()
        quick = await call("serving.intake.misbehaving.echo", {"number": 3}, BOUNDS)
        return await slow, quick

    assert asyncio.run(main()) == ("rested", 3)


def test_a_forker_that_died_is_started_again() -> None:
    assert made("echo", number=1) == 1
    assert _FORKER._process is not None
    _FORKER._process.kill()
    assert made("echo", number=2) == 2


def waiting() -> list[int]:
    """After a call: the watcher that waits for the next, and its worker."""
    used, _ = made("age")
    assert _FORKER._process is not None
    until, process, found = time.monotonic() + 100, _FORKER._process.pid, list[int]()
    while (len(found) != 2 or used in found) and time.monotonic() < until:
        time.sleep(0.02)
        watchers = children(process)
        found = [*watchers, *(child for watcher in watchers for child in children(watcher))]
    assert len(found) == 2
    assert used not in found
    return found


def children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def test_a_worker_waits_for_its_call_and_is_used_once() -> None:
    _, waits = waiting()
    time.sleep(0.5)
    used, age = made("age")
    assert (used, age > 0.4) == (waits, True)
    assert gone(used, within_s=100)
    assert waiting()[1] != used


def test_what_a_worker_practises_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    tempfile.tempdir = None
    try:
        practise()
        assert (list(tmp_path.iterdir()), tempfile.gettempdir()) == ([], str(tmp_path))
    finally:
        tempfile.tempdir = None


@pytest.mark.parametrize("whom", [0, 1, slice(None)], ids=["watcher", "worker", "both"])
def test_a_worker_that_died_while_it_waited(whom: int | slice) -> None:
    killed = waiting()[whom]
    for process in [killed] if isinstance(killed, int) else killed:
        os.kill(process, signal.SIGKILL)
        assert gone(process, within_s=100)
    assert made("echo", number=2) == 2


def test_none_waits_where_there_is_nobody_to_call() -> None:
    waits = waiting()
    _FORKER.stop()
    assert all(gone(process, within_s=100) for process in waits)
