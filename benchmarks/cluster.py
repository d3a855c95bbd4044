"""A cluster that loses things: seeded kills over ingest, train, sweep, predict and evaluate, as a user runs them.

Two nodes of two CPUs, as processes of this machine, and every verb as a command that joins them. `chaos` runs the
verbs on generated scans undisturbed, and then again while it kills, by a seed, a worker, a reader of training's data,
a node (its raylet; another node comes for it) or the command itself, which is then run again. Every verb must end
well, every case must be there once, and weights, answers and scores must be those of the undisturbed run; the peer is
that run. 20 kills, 5 with ``--quick``; with ``--folder`` the undisturbed run is kept and used again. ``--only`` also
takes the parts of `cluster_costs.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
from cluster_costs import PARTS, costs
from table import Row, options, show

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))

from record_behaviour import RECIPES  # noqa: E402
from support.clusters import FixedCluster, fixed_cluster  # noqa: E402

RECIPE = "spleen"
NUM_SCANS = 10
FIELDS = (*RECIPES[RECIPE], "optim.epochs=6", "optim.steps_per_epoch=4", "optim.validate_every=3")
KINDS = ("worker", "reader", "node", "command")
MAX_RUNS = 12
"""How often a command is begun that was killed or has failed."""
PAUSE_S = (1.0, 6.0)
"""Between a kill and the next, at random."""
LIMIT_S = 1200.0
"""How long one command may take."""


def main() -> None:
    """Measures and prints the table."""
    asked = options(__doc__ or "", folder="keeps scans, runs and what every command printed", parts=("chaos", *PARTS))
    if asked.only in PARTS:
        costs(asked.only, quick=asked.quick, json_file=asked.json)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = list(chaos(folder.resolve(), 5 if asked.quick else 20))
    show(rows, title="cluster", json_file=asked.json)


def chaos(folder: Path, num_kills: int) -> Iterator[Row]:
    """The rows of the kills."""
    scans = folder / "scans"
    if not (scans / "dataset_spleen.toml").exists():
        voxray("toy", str(scans), "--kind", "abdomen", "--cases", str(NUM_SCANS))
    calm = folder / "calm"
    if not (calm / "facts.json").exists():
        found = Disturbed(calm, scans, kills=()).run()
        (calm / "facts.json").write_text(json.dumps(found))
    expected: Mapping[str, str] = json.loads((calm / "facts.json").read_text())
    number = 1 + sum(1 for _ in folder.glob("chaos_*"))
    draw = random.Random(number)
    kills = [draw.choice(KINDS) for _ in range(num_kills)]
    disturbed = Disturbed(folder / f"chaos_{number}", scans, kills=kills, seed=number)
    found = disturbed.run()
    done = Counter(disturbed.done)
    told = ", ".join(f"{count} x {kind}" for kind, count in sorted(done.items()))
    limit = 5 + done["command"]
    yield Row(f"commands begun for 5 verbs: {told}", 5, disturbed.begun, "commands", limit, aim_of="voxray")
    for name, digest in expected.items():
        if name == "seconds":
            continue
        differs = int(found.get(name) != digest)
        yield Row(f"{name}: differs from the undisturbed run", 0, differs, "0 or 1", 0, aim_of="voxray")
    yield Row(
        "kills that were asked for and not done", 0, num_kills - len(disturbed.done), "kills", 0, aim_of="voxray"
    )
    yield Row(
        "seconds for all verbs", float(expected["seconds"]), float(found["seconds"]), "s", 0, less_is_better=True
    )


@dataclass
class Disturbed:
    """The verbs one after another in a folder, while kills happen."""

    folder: Path
    scans: Path
    kills: Sequence[str]
    seed: int = 0
    begun: int = 0
    done: list[str] = field(default_factory=list)

    def run(self) -> dict[str, str]:
        """Brings every verb to its end; `facts`, and the seconds."""
        self.folder.mkdir(parents=True, exist_ok=True)  # verbs go on from what is done
        begin, draw = time.monotonic(), random.Random(self.seed)
        waiting = list(self.kills)
        with fixed_cluster(2, 2) as cluster:
            for place, (verb, words) in enumerate(self._verbs()):
                share = len(waiting) if place == 4 else -(-len(waiting) // (5 - place))
                left = self._bring_to_end(verb, words, cluster, waiting[:share], draw)
                waiting = left + waiting[share:]
        return {**self.facts(), "seconds": str(time.monotonic() - begin)}

    def _verbs(self) -> list[tuple[str, tuple[str, ...]]]:
        fields = tuple(word for one in FIELDS for word in ("--set", one))
        answers = f"{self.folder}/answers"
        run, space = str(self.folder / "run"), str(REPOSITORY / "search_spaces" / "segmentation.toml")
        data, store = str(self.scans / "dataset_spleen.toml"), str(self.folder / "store")
        return [
            ("ingest", (data, RECIPE, "-o", store, *fields)),
            ("train", (store, RECIPE, "-o", run, "--workers", "1", "--seed", "7", *fields)),
            ("sweep", (run, space, "--trials", "12", "--same-cases", "--workers", "2", "-o", f"{self.folder}/sweep")),
            (
                "predict",
                (run, f"{self.scans}/images", "--workers", "2", "--set", "merge.threshold=0.2", "-o", answers),
            ),
            ("evaluate", (run, "--workers", "2", "--cases", "all", "-o", f"{self.folder}/evaluation")),
        ]

    def _bring_to_end(
        self, verb: str, words: Sequence[str], cluster: FixedCluster, kills: Sequence[str], draw: random.Random
    ) -> list[str]:
        """Runs the verb until it ends well, which a killed command does not; the kills that found nothing to kill."""
        waiting = list(kills)
        for attempt in range(MAX_RUNS):
            log = self.folder / f"{verb}_{attempt}.log"
            self.begun += 1
            end = time.monotonic() + LIMIT_S
            with log.open("wb") as stream:
                process = start((verb, *words), address=cluster.address, log=stream)
                pause = time.monotonic() + draw.uniform(*PAUSE_S)
                while process.poll() is None:
                    assert time.monotonic() < end, f"{verb} hangs: {log}"
                    if waiting and time.monotonic() >= pause and kill(waiting[0], process, cluster, draw):
                        self.done.append(waiting.pop(0))
                        print(f"{verb}: killed a {self.done[-1]}", file=sys.stderr, flush=True)
                        pause = time.monotonic() + draw.uniform(*PAUSE_S)
                    time.sleep(0.1)
            print(f"{verb}: exit code {process.returncode}", file=sys.stderr, flush=True)
            if process.returncode == 0:
                return waiting
            assert process.returncode < 0, log.read_text()[-3000:]  # not one that we killed
        raise AssertionError(f"{verb} did not end in {MAX_RUNS} runs")

    def facts(self) -> dict[str, str]:
        """What came of it: digests by what they are of, cases by verb."""
        state = json.loads((self.folder / "run" / "state.json").read_text())
        weights = self.folder / "run" / "checkpoints" / state["last"] / "weights.safetensors"
        manifest = json.loads((self.folder / "store" / "manifest.json").read_text())
        evaluation = json.loads((self.folder / "evaluation" / "evaluation.json").read_text())
        answers = sorted((self.folder / "answers").rglob("*.nii.gz"))
        return {
            "cases of the store, each once": " ".join(sorted(manifest["cases"])),
            "weights": digest_of([weights]),
            "scans answered, each once": " ".join(one.name for one in answers),
            "answers": digest_of(answers),
            "scores of each case": json.dumps(evaluation["cases"], sort_keys=True),
        }


def kill(kind: str, command: subprocess.Popen[bytes], cluster: FixedCluster, draw: random.Random) -> bool:
    """Kills one of a kind; False where there is none now."""
    if kind == "command":
        if not workers(cluster):
            return False
        command.kill()
    elif kind == "node":
        if not workers(cluster):
            return False
        index = draw.randrange(1, len(cluster.raylets))
        cluster.lose(index)
        del cluster.raylets[index]
        cluster.add(2)
    else:
        found = [one for one in workers(cluster) if kind == "worker" or "Map" in one[1] or "Read" in one[1]]
        if not found:
            return False
        draw.choice(found)[0].kill()
    return True


def workers(cluster: FixedCluster) -> list[tuple[psutil.Process, str]]:
    """The processes of Ray's workers that have something to do, with their titles."""
    found = []
    for raylet in cluster.raylets:
        try:
            for one in psutil.Process(raylet).children():
                title = " ".join(one.cmdline())
                if title.startswith("ray::") and "IDLE" not in title:
                    found.append((one, title))
        except psutil.NoSuchProcess:
            continue
    return found


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 over all bytes."""
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()


def start(words: Sequence[str], *, address: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """A command that joins the cluster."""
    environment = {**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "voxray", *words],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
    )


def voxray(*words: str) -> None:
    """A command on this machine alone."""
    subprocess.run([sys.executable, "-m", "voxray", *words], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
