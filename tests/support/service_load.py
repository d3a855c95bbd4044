"""Clients that use a service as clients do, well and badly, and remember what they were promised."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

Answers = Mapping[tuple[int, str], Any]
"""(scan, model) -> the right result."""


@dataclass
class Record:
    """What happened to all clients together."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """What must not happen: a 5xx that is no honest 503, a wrong answer, a job that is lost or done twice."""
    jobs: int = 0
    cancelled: int = 0
    refused: int = 0
    broken: int = 0
    """Connections that broke; only where something was killed may there be any."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def saw(self, reply: httpx.Response, *allowed: int) -> bool:
        """Notes a reply; whether it was one of the allowed."""
        with self.lock:
            self.statuses[reply.status_code] += 1
            fine = reply.status_code in (*allowed, 429) or (
                reply.status_code == 503 and reply.json().get("code") != "service.fault"
            )
            if not fine:
                self.faults.append(f"{reply.request.method} {reply.request.url.path}: {reply.text[:300]}")
        return reply.status_code in allowed

    def fault(self, text: str) -> None:
        """Notes what must not happen."""
        with self.lock:
            self.faults.append(text)


class Client:
    """One of many."""

    def __init__(self, address: str, scans: Sequence[Path], answers: Answers, record: Record, seed: int) -> None:
        self._scans, self._answers, self._record = scans, answers, record
        self._http = httpx.Client(base_url=address, timeout=120)
        self._random = random.Random(seed)

    def go_on(self, until: float) -> None:
        """Asks one thing after another."""
        while time.monotonic() < until:
            try:
                self._random.choices((self._job, self._nonsense), (9, 1))[0]()
            except httpx.TransportError:
                with self._record.lock:
                    self._record.broken += 1
                time.sleep(0.3)

    def _job(self) -> None:
        number = self._random.randrange(len(self._scans))
        files = {"file": ("scan.nii.gz", self._scans[number].read_bytes())}
        reply = self._http.post("/v1/studies", files=files)
        if not self._record.saw(reply, 201):
            time.sleep(0.5)
            return
        study = reply.json()["study_id"]
        model = self._random.choice([model for scan, model in self._answers if scan == number])
        body, key = {"study_id": study, "model": model}, f"{self._random.random()}"
        reply = self._http.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
        if self._record.saw(reply, 202):
            self._follow(reply.json()["job_id"], body, key, number, model)
        self._record.saw(self._http.delete(f"/v1/studies/{study}"), 204)

    def _follow(self, job: str, body: dict[str, str], key: str, number: int, model: str) -> None:
        if self._random.random() < 0.2:
            again = self._http.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
            if self._record.saw(again, 202) and again.json()["job_id"] != job:
                self._record.fault("one key, two jobs")
        if self._random.random() < 0.05:
            state = self._http.post(f"/v1/jobs/{job}/cancel").json()["state"]
            with self._record.lock:
                self._record.cancelled += state == "cancelled"
            return
        found = self._ended(job)
        if found is None or found["state"] != "done":
            self._record.fault(f"an accepted job ended so: {found}")
        elif (
            found["result"]["findings" if "findings" in found["result"] else "labels"] != self._answers[number, model]
        ):
            self._record.fault("a wrong answer")
        with self._record.lock:
            self._record.jobs += 1

    def _ended(self, job: str) -> dict[str, Any] | None:
        for _ in range(100):
            reply = self._http.get(f"/v1/jobs/{job}?wait=20")
            if not self._record.saw(reply, 200):
                time.sleep(1)
            elif reply.json()["state"] not in ("queued", "running"):
                found: dict[str, Any] = reply.json()
                return found
        return None

    def _nonsense(self) -> None:
        """What bad clients send; each is refused with a 4xx."""
        send = self._http.post
        kind = self._random.randrange(5)
        if kind == 0:
            junk = self._random.randbytes(2000)
            reply = send("/v1/studies", files={"file": ("scan.nii.gz", junk)})
        elif kind == 1:
            whole = self._scans[0].read_bytes()
            reply = send("/v1/studies?name=scan.nii.gz", content=whole[: len(whole) // 2])
        elif kind == 2:
            reply = send("/v1/jobs", json={"study_id": "0" * 32, "model": "nothing"})
        elif kind == 3:
            reply = send("/v1/jobs", content=b"{]", headers={"content-type": "application/json"})
        else:
            reply = self._http.get("/v1/jobs/" + "f" * 32)
        if self._record.saw(reply, 400, 404, 413, 415, 422):
            with self._record.lock:
                self._record.refused += 1


def use(address: str, scans: Sequence[Path], answers: Answers, *, clients: int, seconds: float) -> Record:
    """So many clients for so long, each to the end of what it began."""
    record, until = Record(), time.monotonic() + seconds
    threads = [
        threading.Thread(target=Client(address, scans, answers, record, seed).go_on, args=(until,))
        for seed in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return record


def right_answers(address: str, scans: Sequence[Path]) -> dict[tuple[int, str], Any]:
    """What the service says of each scan when nothing disturbs it."""
    found: dict[tuple[int, str], Any] = {}
    with httpx.Client(base_url=address, timeout=300) as client:
        for number, path in enumerate(scans):
            study = client.post("/v1/studies", files={"file": ("scan.nii.gz", path.read_bytes())}).json()["study_id"]
            for model in client.get("/v1/models").json()["models"]:
                body = {"study_id": study, "model": model["name"]}
                job = client.post("/v1/jobs?wait=300", json=body).json()
                result = job["result"]
                found[number, model["name"]] = result.get("findings", result.get("labels"))
    return found


def resident_mib(pids: Sequence[int]) -> float:
    """The memory that the processes hold by themselves, without what they share through files."""
    total = 0.0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(("Anonymous:",))) / 1024
    return total
