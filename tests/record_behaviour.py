"""Record what the program does, to prove that a change of its structure changed nothing else.

    python tests/record_behaviour.py before.json                        # before the change
    python tests/record_behaviour.py after.json --against before.json   # after it; exit 1 where anything differs

Every verb is run as a user runs it, on generated scans, with fixed seeds, and the record holds what it printed, its
exit code and a digest of each file that it left (weights included); besides those the help of every verb, the error
codes, the service's OpenAPI document and its database's tables. Durations, memory, dates, identifiers that are drawn
anew and the folder's own path are taken out first; the commit is the same for all. It takes about ten minutes on two
cores.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import hashlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
Record = dict[str, str]

_SHORT_TRAINING = ("optim.epochs=2", "optim.steps_per_epoch=3", "optim.validate_every=1", "optim.batch_size=2")
_ADAMW = ("optim.optimizer='adamw'", "optim.schedule='cosine'", "optim.warmup_epochs=1", "optim.decay_epochs=[]")
RECIPES: Mapping[str, tuple[str, ...]] = {
    "lung_nodule": (
        *_SHORT_TRAINING,
        *_ADAMW,
        "grid.spacing_mm=[3.0, 3.0, 3.0]",
        "patch.size_vox=[40, 40, 32]",
        "patch.margin_vox=[12, 12, 12]",
        "patch.max_object_vox=[16, 16, 16]",
        "network.backbone='resnet10'",
        "network.width=16",
        "network.channels=24",
        "network.norm_groups=4",
        "network.stem_kernel=[3, 3, 3]",
        "network.stem_stride=[1, 1, 1]",
        "network.returned_layers=[1]",
        "anchors.base_shapes_vox=[[5, 5, 5]]",
        "anchors.level_scales=[1, 1.7]",
        "loss.atss_candidates=9",
        "optim.rate=0.0015",
        "inference.window_vox=[64, 64, 64]",
    ),
    "spleen": (
        *_SHORT_TRAINING,
        *_ADAMW,
        "grid.spacing_mm=[3.0, 3.0, 3.0]",
        "patch.size_vox=[48, 48, 48]",
        "patch.margin_vox=[16, 16, 16]",
        "network.channels=[8, 16, 32]",
        "network.strides=[2, 2]",
        "optim.rate=0.004",
        "inference.window_vox=[64, 64, 48]",
    ),
    "whole_body": (
        *_SHORT_TRAINING,
        *_ADAMW,
        "grid.spacing_mm=[4.0, 4.0, 4.0]",
        "patch.size_vox=[48, 48, 48]",
        "patch.margin_vox=[12, 12, 12]",
        "network.init_filters=8",
        "network.dropout=0",
        "optim.rate=0.003",
        "inference.window_vox=[64, 64, 48]",
    ),
}
DATA = {
    "lung_nodule": "thorax/dataset.toml",
    "spleen": "abdomen/dataset_spleen.toml",
    "whole_body": "abdomen/dataset.toml",
}

_VOLATILE = re.compile(
    r"seconds|created|modified|commit|date\b|_ms$|^ms$|_s$|peak|speed|elapsed|version$|created_at|wait_share"
)
_DURATION = re.compile(r"\b\d+(\.\d+)?(?= ?(s|ms|minutes?|GiB|MiB|GB/s)\b)")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d+)?)?Z?")
_NOT_COMPARED = (".db", ".db-wal", ".db-shm", ".lock")
_OF_ONE_RUN = ("tracking.json", "placement_group", "speed.json", "waits.json")
"""MLflow's and Ray's own identifiers, milliseconds, and what was waited for."""
_SHARE = re.compile(r"\b\d+(\.\d+)?%(?= of the time)")
_SPEEDS = re.compile(r"[|│]( +\d+(\.\d+)? +[|│]){4}")
_JOURNAL = re.compile(rb'(?<="worker_id":)"[^"]*"|(?<="datetime_start":)"[^"]*"|(?<="datetime_complete":)"[^"]*"')
_CODE = re.compile(r"[a-z][a-z0-9]*(\.[a-z0-9_]+)+")


@dataclass(frozen=True)
class Step:
    """One command, and the folder whose files it is answerable for; None where it leaves none."""

    name: str
    words: tuple[str, ...]
    leaves: str | None = None


def steps() -> Iterator[Step]:
    """What a user does from a folder of scans to a report, for the three recipes, and what may go wrong."""
    for kind in ("thorax", "abdomen", "cubes"):
        yield Step(f"toy {kind}", ("toy", kind, "--kind", kind, "--cases", "6"), kind)
        yield Step(f"check {kind}", ("check", f"{kind}/dataset.toml"))
    yield Step("info", ("info", "thorax/images/toy_000.nii.gz", "--pixels", "--json"))
    for name, overrides in RECIPES.items():
        fields = tuple(word for field in overrides for word in ("--set", field))
        yield Step(f"recipe {name}", ("recipe", name))
        yield Step(f"ingest {name}", ("ingest", DATA[name], name, "-o", f"store/{name}", *fields), f"store/{name}")
        train = ("train", f"store/{name}", name, *fields, "--seed", "7")
        for run, words in (("0", ("--workers", "0")), ("1", ("--workers", "1")), ("fold_1", ("--workers", "0"))):
            where = f"run/{name}_{run}"
            fold = "1" if run == "fold_1" else "0"
            yield Step(f"train {name} {run}", (*train, *words, "-o", where, "--fold", fold), where)
        yield from _with_run(name, f"run/{name}_0", f"run/{name}_fold_1")
    yield from _wrong()


def _with_run(name: str, run: str, other: str) -> Iterator[Step]:
    detects = name == "lung_nodule"
    forms = "preview,csv-luna16,monai-json,markups" if detects else "preview"
    scans = f"{Path(DATA[name]).parent}/images"
    yield Step(f"evaluate {name}", ("evaluate", run, "-o", f"evaluation/{name}"), f"evaluation/{name}")
    keep = ("--keep-candidates",) if name != "whole_body" else ()
    predict = ("predict", run, f"{scans}/toy_000.nii.gz", f"{scans}/toy_001.nii.gz", "--runtime", "torch", *keep)
    yield Step(f"predict {name}", (*predict, "-o", f"answers/{name}", "--save", forms), f"answers/{name}")
    dicom = "preview,dicom-sr" if detects else "preview,dicom-sr,dicom-seg,rtstruct"
    yield Step(
        f"predict dicom {name}",
        ("predict", run, "series", "--runtime", "torch", "-o", f"dicom/{name}", "--save", dicom),
        f"dicom/{name}",
    )
    against = ("evaluate", f"answers/{name}", DATA[name], "--cases", "answered", "-o", f"scores/{name}")
    yield Step(f"evaluate files {name}", against, f"scores/{name}")
    yield Step(
        f"report {name}", ("report", f"evaluation/{name}", "-o", f"reports/{name}.html"), f"reports/{name}.html"
    )
    if name != "whole_body":
        space = f"{REPOSITORY}/search_spaces/{'detection' if detects else 'segmentation'}.toml"
        sweep = ("sweep", run, space, "--trials", "6", "--same-cases", "-o", f"sweep/{name}")
        yield Step(f"sweep {name}", sweep, f"sweep/{name}")
    package = f"package/{name}"
    yield Step(f"consolidate {name}", ("consolidate", run, other, "-o", package), package)
    for form, words in (("onnx", ("--runtime", "onnx")), ("bundle", ("--as", "monai-bundle"))):
        where = f"{form}/{name}"
        yield Step(f"export {form} {name}", ("export", run, "-o", where, "--batch", "1", *words), where)


def _wrong() -> Iterator[Step]:
    """Wrong input: one sentence and an exit code each."""
    for number, words in enumerate(
        (
            ("check", "absent.toml"),
            ("info", "absent.nii.gz"),
            ("info", "thorax/dataset.toml"),
            ("recipe", "absent"),
            ("recipe", "spleen", "--set", "optim.rte=1"),
            ("ingest", "thorax/dataset.toml", "absent", "-o", "store/wrong"),
            ("train", "store/spleen", "lung_nodule", "-o", "run/wrong"),
            ("train", "store/absent", "spleen", "-o", "run/wrong"),
            ("predict", "run/absent", "thorax/images", "-o", "answers/wrong"),
            ("predict", "run/spleen_0", "absent", "-o", "answers/wrong"),
            ("predict", "run/spleen_0", "thorax/images", "-o", "answers/wrong", "--save", "absent"),
            ("evaluate", "answers/absent", "thorax/dataset.toml"),
            ("evaluate", "answers/spleen", "abdomen/dataset_spleen.toml", "--rules", "absent"),
            ("sweep", "run/absent", f"{REPOSITORY}/search_spaces/detection.toml"),
            ("consolidate", "run/absent", "-o", "package/wrong"),
            ("export", "run/spleen_0", "-o", "package/wrong", "--runtime", "absent"),
            ("report", "evaluation/absent"),
            ("crossval", "thorax/dataset.toml", "absent", "-o", "folds"),
            ("serve",),
            ("token", "remove", "nobody"),
            ("import-weights", "absent.pt", "spleen", "-o", "run/wrong"),
        )
    ):
        yield Step(f"wrong {number:02d} {words[0]}", words)


def run_step(step: Step, folder: Path) -> Record:
    """Runs the command in the folder; what it printed, its exit code and the digests of what it left."""
    found: Record = {}
    done = subprocess.run(
        [sys.executable, "-m", "voxray", *step.words],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    found[f"{step.name}: exit"] = str(done.returncode)
    found[f"{step.name}: out"] = _plain(done.stdout, folder)
    complaints = [line for line in done.stderr.splitlines() if line.startswith("voxray: ")]
    found[f"{step.name}: complaints"] = _plain("\n".join(complaints), folder)
    if step.leaves is not None:
        found |= {f"{step.name}: {name}": value for name, value in digests(folder / step.leaves, folder).items()}
    return found


def digests(place: Path, folder: Path) -> Record:
    """The digest of each file, by its path below the place."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    found: Record = {}
    for path in files:
        if (
            path.suffix in _NOT_COMPARED
            or path.name in _OF_ONE_RUN
            or "mlruns" in path.parts
            or "mlartifacts" in path.parts
        ):
            continue
        name = path.name if path == place else path.relative_to(place).as_posix()
        found[name] = hashlib.sha256(_content(path, folder)).hexdigest()[:16]
    return found


def _content(path: Path, folder: Path) -> bytes:
    """What of a file may not change."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix in (".json", ".jsonl", ".log", ".csv", ".html", ".md", ".toml", ".txt"):
        text = data.decode("utf-8")
        if path.suffix == ".json":
            return json.dumps(_steady(_lasting(path.name, json.loads(text)), folder), sort_keys=True).encode()
        return _plain(text, folder).encode()
    if path.suffix == ".journal":
        return _JOURNAL.sub(b"*", data)
    return _WITHOUT_NOISE[path.suffix](path) if path.suffix in _WITHOUT_NOISE else data


def _lasting(name: str, found: Any) -> Any:
    """A JSON file, but for what depends on the moment at which it was written."""
    if name == "ticker.json":  # how far the training and how busy the machine was, every few seconds
        return sorted(found)
    if name == "package.json":  # digests of files that hold dates
        return {**found, "files": sorted(found["files"])}
    return found


def _without_moments(path: Path) -> bytes:
    """A DICOM object, but for when it was written."""
    import pydicom

    def drop(inside: Any, element: Any) -> None:
        if element.VR in ("DA", "TM", "DT"):
            del inside[element.tag]

    found = pydicom.dcmread(path)
    found.walk(drop)
    return found.to_json().encode()  # pixels included, which str() leaves out


def _without_speeds(path: Path) -> bytes:
    """What a checkpoint holds beside the weights, but for how long its epochs took."""
    import torch

    def flat(value: Any) -> Iterator[bytes]:
        if isinstance(value, dict):
            for key in value:
                yield from (repr(key).encode(), *(() if _VOLATILE.search(str(key)) else flat(value[key])))
        elif isinstance(value, (list, tuple)):
            for one in value:
                yield from flat(one)
        else:
            is_tensor = isinstance(value, torch.Tensor)
            yield (
                value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                if is_tensor
                else (repr(value).encode())
            )

    return b"\0".join(flat(torch.load(path, weights_only=False, map_location="cpu")))


_WITHOUT_NOISE: Mapping[str, Callable[[Path], bytes]] = {
    ".dcm": _without_moments,
    ".pt": _without_speeds,
}


def _steady(value: Any, folder: Path) -> Any:
    """JSON without what differs from one run to the next."""
    if isinstance(value, dict):
        return {key: "*" if _VOLATILE.search(key) else _steady(one, folder) for key, one in value.items()}
    if isinstance(value, list):
        return [_steady(one, folder) for one in value]
    return _plain(value, folder) if isinstance(value, str) else value


def _plain(text: str, folder: Path) -> str:
    text = text.replace(str(folder), "<folder>").replace(str(REPOSITORY), "<repository>")
    text = _SPEEDS.sub("<speeds>", _SHARE.sub("<share>", text))
    return _MOMENT.sub("<moment>", _DURATION.sub("<n>", text))


def helps() -> Record:
    """The help of the program and of every verb."""
    first = _help()
    verbs = re.findall(r"^[│ ]+([a-z][a-z-]+)  ", first.partition("Commands")[2], flags=re.MULTILINE)
    assert len(verbs) > 10, first
    return {"help": first} | {f"help {verb}": _help(verb) for verb in verbs}


def _help(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "voxray", *words, "--help"],
        env=_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def error_codes() -> Record:
    """Every literal that looks like an error's code, in the first place of a call."""
    found: set[str] = set()
    for path in (REPOSITORY / "platform" / "voxray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                value = node.args[0].value
                if isinstance(value, str) and _CODE.fullmatch(value) and not value.startswith("voxray."):
                    found.add(value)
    return {"error codes": "\n".join(sorted(found))}


def service(folder: Path, model: str) -> Record:
    """The OpenAPI document of a service and the tables of its database, and how it ends on Ctrl-C."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", f"spleen={model}", "--port", str(port), "--folder", "service"]
    log = (folder / "serve.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "voxray", *words], cwd=folder, env=_environment(), stdout=log, stderr=log
    )
    try:
        document = json.dumps(_steady(json.loads(_fetched(port, process)), folder), indent=1, sort_keys=True)
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(timeout=120)
        log.close()
    with sqlite3.connect(next((folder / "service").glob("*.db"))) as database:
        tables = [str(row[0]) for row in database.execute("select sql from sqlite_master order by name") if row[0]]
    return {"openapi": document, "database": "\n".join(tables), "serve: exit": str(code)}


def _fetched(port: int, process: subprocess.Popen[bytes]) -> bytes:
    end = time.monotonic() + 600  # on a busy machine Ray alone takes minutes
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=5) as answer:
                return bytes(answer.read())
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"the service did not answer on port {port}; see serve.log")


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "VOXRAY_"))}
    # The commit is in DICOM's identifiers and Parquet's metadata, too.
    return {
        **kept,
        "VOXRAY_COMMIT": "0" * 40,
        "COLUMNS": "160",
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
        "TERM": "dumb",
    }


def write_series(folder: Path) -> None:
    """A phantom's scan as a DICOM series, which the forms of DICOM need."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from support.dicom_series import write_volume
    from voxray.preprocess import orient
    from voxray.readers import read_volume

    volume = read_volume(folder / "abdomen" / "images" / "toy_002.nii.gz")
    write_volume(folder / "series", orient(volume, "LPS"))


def record(only: Sequence[str], where: Path | None) -> Record:
    """The whole record, of the steps whose names hold a word of `only`; their files stay in `where`."""
    found = helps() | error_codes()
    with tempfile.TemporaryDirectory(prefix="behaviour_") as name:
        folder = (where or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for step in steps():
            if only and not any(word in step.name for word in only):
                continue
            if step.name.startswith("predict dicom") and not (folder / "series").exists():
                write_series(folder)
            begin = time.monotonic()
            found |= run_step(step, folder)
            print(f"{step.name}: exit {found[f'{step.name}: exit']}, {time.monotonic() - begin:.0f} s", flush=True)
        if not only or "service" in only:
            found |= service(folder, "run/spleen_0")
    return found


def differences(before: Record, after: Record) -> list[str]:
    """A line for each entry that is new, gone or not the same."""
    return [
        f"{name}:\n    before: {before.get(name)!r:.500}\n    after:  {after.get(name)!r:.500}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def main() -> None:
    """Records, and compares where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where the record is written")
    parser.add_argument("--against", type=Path, help="an earlier record")
    parser.add_argument("--only", nargs="*", default=[], help="steps whose names hold one of these words")
    parser.add_argument("--folder", type=Path, help="where the files are left, to look at what differs")
    options = parser.parse_args()
    found = record(options.only, options.folder)
    options.file.write_text(json.dumps(found, indent=1, sort_keys=True), encoding="utf-8")
    if options.against is not None:
        lines = differences(json.loads(options.against.read_text(encoding="utf-8")), found)
        print("\n".join(lines) or f"{len(found)} entries, all the same")
        raise SystemExit(1 if lines else 0)


if __name__ == "__main__":
    main()
