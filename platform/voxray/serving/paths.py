"""Where studies and jobs lie in the service's folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from voxray.core.addresses import local_path
from voxray.core.apart import Input, keep_out, require_folder
from voxray.core.errors import ConfigError
from voxray.results.formats import FORMATS, FormatName
from voxray.serving.intake.study import SOURCE

IDENTIFIER = re.compile(r"[0-9a-f]{32}")
"""Of studies and jobs, as `jobs.store.new_id` makes them."""


@dataclass(frozen=True)
class ServicePaths:
    """The folders below the service's own."""

    root: Path

    def prepared(self) -> ServicePaths:
        """The same, with the folders there, and closed to other users of the machine."""
        for folder in (self.root, self.studies, self.jobs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    def require_own(self, models: Iterable[str | Path] = ()) -> None:
        """A ConfigError where the folder is no place for a service, which removes what has expired there.

        Only from its studies and jobs: its configuration and logs may lie beside these.
        """
        require_folder(self.root, "--folder")
        paths = [path for model in models if (path := local_path(model)) is not None]
        read = [Input(path, "the folder of a model") for path in paths]
        keep_out(self.root, read, instead="give another with --folder")
        for folder in (self.studies, self.jobs):
            foreign = [path for path in _visible(folder) if not IDENTIFIER.fullmatch(path.name)]
            if foreign:
                raise ConfigError(
                    f"{foreign[0]}: was not made by a service, which removes from {folder} what has expired; give "
                    f"another folder with --folder."
                )

    @property
    def studies(self) -> Path:
        """A folder a study."""
        return self.root / "studies"

    @property
    def jobs(self) -> Path:
        """A folder a job."""
        return self.root / "jobs"

    @property
    def logs(self) -> Path:
        """Of each process of the service."""
        return self.root / "logs"

    def study(self, study: str) -> Path:
        """The study's folder."""
        return self.studies / study

    def job(self, job: str) -> Path:
        """The job's folder."""
        return self.jobs / job

    def source(self, study: str) -> Path:
        """What was uploaded, under our own names."""
        return self.study(study) / SOURCE

    def answer(self, job: str, study: str) -> Path:
        """The answer's JSON; a label map lies beside it."""
        return self.job(job) / f"{study}.json"

    def labels(self, job: str, study: str) -> Path:
        """The answer's label map."""
        return self.job(job) / f"{study}.nii.gz"

    def result(self, job: str, study: str, form: FormatName) -> Path:
        """A job's result in a format: the answer itself, which bears the study's name, or what is made of it."""
        known = FORMATS[form]
        return self.job(job) / (known.file or f"{study}{known.suffix}")


def _visible(folder: Path) -> list[Path]:
    """What the folder holds; nothing where there is none."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
