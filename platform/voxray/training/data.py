"""The data of a training: a run goes on with those that it began on, or with changed ones where that is accepted.

RUN/run.json             the versions of the data, each with the epoch after which it came
RUN/data/<digest>.json   a digest of each case of a version, by which a change can be named
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from voxray.core.errors import ConfigError
from voxray.core.run import DataVersion, Run
from voxray.core.storage import Location, Place
from voxray.core.text import first_few
from voxray.store import Changes, Contents, Store, counted
from voxray.training.checkpoint import claim_folder, find_state, read_run, refuse_another

FOLDER = "data"
FLAG = "--accept-changed-data"


@dataclass(frozen=True)
class Planned:
    """The run as it is to be trained, and what is to be said of its data; nothing has been written yet."""

    run: Run
    contents: Contents
    remarks: tuple[str, ...] = ()


def plan_run(location: Location, wanted: Run, store: Store, *, accept: bool = False) -> Planned:
    """`wanted` as a new run, or as it goes on in its folder; a ConfigError where that holds another run.

    Changed data are refused but with `accept`. Then every case that the run knows keeps its side, as its network has
    seen those that train; an added one goes where its patient is, or else where the fold puts it.
    """
    contents, folder = Contents.of(store.manifest), Place.of(location)
    if not folder.exists("run.json"):
        return Planned(_with_data(wanted, _version(store, contents, wanted)), contents)
    held = read_run(location)
    refuse_another(location, held, wanted)
    changes = _changes(folder, held, wanted, contents)
    unchanged = not changes and (not held.data or held.data[-1].digest == contents.digest)
    if unchanged:
        _refuse_other_sides(folder, held, wanted)
        return _unchanged(folder, held, contents, _version(store, contents, wanted))
    state = find_state(location)
    epochs, finished = (state.epochs_done, state.finished) if state else (0, False)
    what = str(changes) or "which cases cannot be told, as its folder 'data' is not complete"
    if not accept and not (finished and contents.digest in held.left_as_it_is):
        total = held.recipe["optim"]["epochs"]
        raise ConfigError(_refusal(folder, store, what, f"{epochs} of its {total} epochs", finished=finished))
    if finished:
        text = f"{folder.uri}: finished its training on other data than {store.uri} holds now ({what}), and stays so."
        known = tuple(dict.fromkeys((*held.left_as_it_is, contents.digest)))
        return Planned(held.model_copy(update={"left_as_it_is": known}), contents, (text,))
    version = _version(store, contents, wanted).model_copy(update={"after_epoch": epochs, "changes": what})
    run = _with_data(_with_sides(held, wanted, store), *held.data, version)
    return Planned(run, contents, (f"{folder.uri}: goes on after epoch {epochs} with changed data: {what}.",))


def claim_run(location: Location, planned: Planned) -> Run:
    """Makes the folder this run's, with what is known of its data."""
    folder, run = Place.of(location), planned.run
    if not folder.exists("run.json"):
        claim_folder(location, run)
    elif run != read_run(location):
        folder.write("run.json", run.model_dump_json(indent=2).encode())
    name = f"{FOLDER}/{planned.contents.digest}.json"
    if run.data and run.data[-1].digest == planned.contents.digest and not folder.exists(name):
        folder.write(name, json.dumps({"cases": dict(planned.contents.cases)}, indent=1).encode())
    return run


def changed_since(location: Location, run: Run, store: Store) -> str:
    """In words how the store differs from the last data of a run; empty where it does not, or nothing is known."""
    contents = Contents.of(store.manifest)
    if not run.data or run.data[-1].digest == contents.digest:
        return ""
    known = _known(Place.of(location), run)
    return str(Changes.between(known, contents.cases)) if known is not None else "its cases are others"


def _unchanged(folder: Place, held: Run, contents: Contents, version: DataVersion) -> Planned:
    if held.data:
        return Planned(held, contents)
    text = (
        f"{folder.uri}: was begun by an earlier voxray, which did not record its data; they are taken to be those of "
        f"{version.store}, and are recorded now."
    )
    return Planned(_with_data(held, version), contents, (text,))


def _changes(folder: Place, held: Run, wanted: Run, contents: Contents) -> Changes:
    """By digests, or where there are none by the cases of both sides."""
    known = _known(folder, held)
    if known is not None:
        return Changes.between(known, contents.cases)
    if held.data:
        return Changes()
    before, now = ({*run.train_cases, *run.val_cases} for run in (held, wanted))
    return Changes(
        added=tuple(sorted(case for case in now - before)),
        removed=tuple(sorted(case for case in before if case not in contents.cases)),
    )


def _known(folder: Place, run: Run) -> dict[str, str] | None:
    """A digest of each case that the run was last trained on; None where that was not recorded, or is lost."""
    if not run.data:
        return None
    try:
        data: Any = json.loads(folder.read(f"{FOLDER}/{run.data[-1].digest}.json"))
        return {str(case): str(digest) for case, digest in data["cases"].items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _refuse_other_sides(folder: Place, held: Run, wanted: Run) -> None:
    """The same data, split otherwise: cases that have trained would validate."""
    dealt = held.data[-1].sides if held.data else _digest(_sides(held))
    if dealt == _digest(_sides(wanted)):
        return
    before, now = _sides(held), _sides(wanted)
    moved = tuple(sorted(case for case in {*before, *now} if before.get(case) != now.get(case)))
    first = f"{moved[0]} {_does(before.get(moved[0]))} there and {_does(now.get(moved[0]))} now"
    raise ConfigError(
        f"{folder.uri}: holds a run whose fold {held.fold} is another: {counted(moved)} changed sides "
        f"({first_few(moved, 5)}; {first}), though the data are the same; give another folder, or the folds that it "
        f"was begun with."
    )


def _with_sides(held: Run, wanted: Run, store: Store) -> Run:
    """The run with the cases that are there now."""
    entries = store.manifest.cases
    side = {case: name for case, name in _sides(held).items() if case in entries}
    of_patient = {entries[case].patient_id: name for case, name in side.items()}
    for case, name in _sides(wanted).items():
        if case not in side:
            side[case] = of_patient.get(entries[case].patient_id, name)
    train, val = (tuple(sorted(case for case, name in side.items() if name == one)) for one in ("train", "val"))
    return held.model_copy(update={"train_cases": train, "val_cases": val})


def _sides(run: Run) -> Mapping[str, str]:
    return {**dict.fromkeys(run.train_cases, "train"), **dict.fromkeys(run.val_cases, "val")}


def _does(side: str | None) -> str:
    return {"train": "trains", "val": "validates"}.get(side or "", "does neither")


def _refusal(folder: Place, store: Store, what: str, done: str, *, finished: bool) -> str:
    begin = f"{folder.uri}: was trained for {done} on other data than {store.uri} holds now: {what}"
    if finished:
        return f"{begin}; train into another folder, or leave it as it is with {FLAG} (recorded)."
    return f"{begin}; train into another folder, or go on with the data as they are now with {FLAG} (recorded)."


def _version(store: Store, contents: Contents, wanted: Run) -> DataVersion:
    sides = _digest(_sides(wanted))
    return DataVersion(digest=contents.digest, sides=sides, store=store.uri, num_cases=len(contents.cases))


def _digest(sides: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sides, sort_keys=True).encode()).hexdigest()[:16]


def _with_data(run: Run, *versions: DataVersion) -> Run:
    return run.model_copy(update={"data": versions})
