"""What `voxray evaluate` reads and writes besides a run, brought to this machine where it lies elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from voxray.core.addresses import local_path
from voxray.core.errors import ConfigError
from voxray.core.evaluation import EVALUATION
from voxray.core.storage import Location, Place
from voxray.core.working_copy import local_file, working_copy
from voxray.core.written import RECORD
from voxray.training.checkpoint import read_state

_TABLES = (".txt", ".csv")


@dataclass
class Brought:
    """The stack of what was brought, and what each copy is a copy of."""

    stack: ExitStack
    names: dict[str, str] = field(default_factory=dict)

    def told(self, text: str) -> str:
        """The text with addresses in place of the copies."""
        for copy, uri in sorted(self.names.items(), key=lambda one: -len(one[0])):
            text = text.replace(copy, uri)
        return text

    def results(self, location: Location | None) -> Path | None:
        """The folder that scores are written to, with those that are there."""
        if location is None or (path := local_path(location)) is not None:
            return None if location is None else path
        place = Place.of(location)
        place.require_writable()
        tables = [name for name in place.names(".") if name.endswith(_TABLES)]
        return self._noted(location, self.stack.enter_context(working_copy(location, [RECORD, EVALUATION, *tables])))

    def result_file(self, location: Location | None) -> Path | None:
        """A file that a score is written to."""
        if location is None or (path := local_path(location)) is not None:
            return None if location is None else path
        above, _, name = Place.of(location).uri.rpartition("/")
        Place.of(above).require_writable()
        return self._noted(above, self.stack.enter_context(working_copy(above, [name, RECORD]))) / name

    def given(self, location: Location | None) -> Path | None:
        """A file or folder that is read, all of it."""
        if location is None or (path := local_path(location)) is not None:
            return None if location is None else path
        place = Place.of(location)
        if place.name.endswith(".toml"):
            raise ConfigError(f"{place.uri}: is not on this machine; a dataset's file and its scans must be.")
        if place.names(".") or place.folders("."):
            found = self.stack.enter_context(working_copy(location))
        else:
            found = self.stack.enter_context(local_file(location))
        return self._noted(location, found)

    def evaluated(self, location: Location) -> Path:
        """What a report reads of a run, a package or a folder with an evaluation; what is written there goes back."""
        place = Place.of(location)
        if place.name.endswith(".json"):  # a file within one of them
            return self.evaluated(place.uri.rpartition("/")[0]) / place.name
        if place.name == "evaluation" and Place.of(above := place.uri.rpartition("/")[0]).exists("state.json"):
            return self.evaluated(above) / "evaluation"
        if place.exists("evaluation/evaluation.json"):
            names = [*place.names("."), *(f"evaluation/{name}" for name in place.names("evaluation"))]
            if place.exists("state.json"):
                best = f"checkpoints/{read_state(place.uri).best}"
                names += [f"{best}/{name}" for name in place.names(best) if name != "trainer.pt"]
            return self._noted(location, self.stack.enter_context(working_copy(location, names)))
        if place.exists(EVALUATION):
            return self._noted(location, self.stack.enter_context(working_copy(location)))
        raise ConfigError(f"{place.uri}: has no {EVALUATION}; make it with `voxray evaluate`.")

    def evaluation(self, location: Location | None) -> Path | None:
        """Another's evaluation: a file, or a folder that holds it."""
        if location is None or (path := local_path(location)) is not None:
            return None if location is None else path
        place = Place.of(location)
        file = place.below(EVALUATION).uri if place.exists(EVALUATION) else place.uri
        return self._noted(file, self.stack.enter_context(local_file(file)))

    def _noted(self, location: Location, path: Path) -> Path:
        self.names[str(path)] = Place.of(location).uri
        return path


@contextmanager
def bringing() -> Iterator[Brought]:
    """What is brought meanwhile; results are at their places when the block ends."""
    with ExitStack() as stack:
        yield Brought(stack)
