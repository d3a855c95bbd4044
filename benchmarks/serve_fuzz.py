"""The service against what nobody meant to send: requests drawn from its own description, scans changed at random.

No reply may be a 5xx other than an honest 503, none may take longer than its limit, and what the service holds in
memory may not grow. The peer's column shows what is aimed at.
"""

from __future__ import annotations

import gzip
import random
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from table import Row, options, show

# What tests use to drive a service; in place of this folder, whose names are those of folders there.
sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")

from support.service_load import resident_mib  # noqa: E402
from support.services import Served, await_ready, small_models, small_scan, start  # noqa: E402

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "malformed"
HANG_S = 30.0


def main() -> None:
    """Prints the table."""
    asked = options(__doc__ or "")
    with tempfile.TemporaryDirectory(prefix="voxray_fuzz_") as scratch:
        folder = Path(scratch)
        models = small_models(folder / "runs")
        seeds = seeds_in(folder)
        served = start(folder / "service", models)
        try:
            await_ready(served)
            upload_all(served, seeds, count=50, seed=1)
            before = resident_mib(served.processes("voxray"))
            rows = upload_all(served, seeds, count=200 if asked.quick else 2000, seed=0)
            rows.append(described(served, examples=10 if asked.quick else 50, folder=folder))
            time.sleep(5)
            growth = resident_mib(served.processes("voxray")) - before
            rows.append(most("growth of memory", growth, "MiB", 100))
            served.process.send_signal(signal.SIGINT)
            served.process.wait(90)
        finally:
            served.kill_all()
    show(rows, title="the service, fuzzed", json_file=asked.json)


def most(case: str, value: float, unit: str, aim: float) -> Row:
    """A figure that has no peer, and the most that it may be."""
    return Row(case, aim, value, unit, aim, less_is_better=True, aim_of="voxray")


def seeds_in(folder: Path) -> list[Path]:
    """The malformed corpus where it is at hand, and a sound scan."""
    found = [path for path in sorted(DATA.rglob("*")) if path.is_file() and path.stat().st_size < 1 << 20]
    return [small_scan(folder / "scan.nii.gz"), *found]


def changed(data: bytes, rng: random.Random) -> bytes:
    """The bytes with some flipped, cut, doubled or put in."""
    held = bytearray(data)
    for _ in range(rng.randint(0, 4)):
        place = rng.randrange(len(held) + 1) if rng.random() < 0.5 else rng.randrange(min(len(held), 400) + 1)
        kind = rng.randrange(4)
        if kind == 0 and place < len(held):
            held[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del held[place : place + rng.randrange(1, 200)]
        elif kind == 2:
            held[place:place] = rng.randbytes(rng.randrange(1, 64))
        else:
            held = held[: max(1, place)]
    return bytes(held)


def body_of(path: Path, rng: random.Random) -> bytes:
    """A file, changed; of a compressed one as often what is in it, as else its checksum keeps all else away."""
    data = path.read_bytes()
    if path.suffix == ".gz" and rng.random() < 0.5:
        try:
            return gzip.compress(changed(gzip.decompress(data), rng), 1)
        except (OSError, EOFError, zlib.error):  # one of the malformed
            pass
    return changed(data, rng)


def upload_all(served: Served, seeds: list[Path], *, count: int, seed: int) -> list[Row]:
    """Uploads mutated scans from eight clients."""
    statuses: Counter[int] = Counter()
    faults: list[str] = []
    slowest = 0.0

    def one(number: int) -> None:
        nonlocal slowest
        rng = random.Random(f"{seed} {number}")
        path = rng.choice(seeds)
        suffix = "".join(path.suffixes[-2:]) if rng.random() < 0.9 else rng.choice((".nii", ".dcm", ".zip", ""))
        body = body_of(path, rng)
        begin = time.monotonic()
        try:
            reply = httpx.post(f"{served.address}/v1/studies", files={"file": (f"x{suffix}", body)}, timeout=120)
        except httpx.HTTPError as error:
            faults.append(f"{path.name}: {type(error).__name__}")
            return
        slowest = max(slowest, time.monotonic() - begin)
        statuses[reply.status_code] += 1
        if reply.status_code >= 500 and reply.json().get("code") == "service.fault":
            faults.append(f"{path.name}: {reply.text[:200]}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(count)))
    print(f"{count} uploads: {dict(statuses)}")
    for fault in faults[:10]:
        print("  fault:", fault)
    return [
        most(f"{count} mutated uploads: faults", len(faults), "", 0),
        most(f"{count} mutated uploads: the slowest reply", slowest, "s", HANG_S),
    ]


def described(served: Served, *, examples: int, folder: Path) -> Row:
    """Schemathesis on the service's OpenAPI document: no reply is a server error, and each is described there."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *("run", f"{served.address}/openapi.json", "--max-examples", str(examples), "--workers", "2"),
        *(
            "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        ),
        *("--generation-deterministic", "--request-timeout", "60"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:])
    return most("schemathesis: exit code", done.returncode, "", 0)


if __name__ == "__main__":
    main()
