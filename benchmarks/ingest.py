"""Volumes per minute from NIfTI files to the recipe's grid, against MONAI's transforms on the same files.

The peer is what MONAI's `CacheDataset` does when it is filled: LoadImaged, EnsureChannelFirstd, Orientationd and
Spacingd in a thread per core. It then holds its volumes in memory; voxray has also cut, compressed and written them.
Both are warm (Ray runs, everything is imported, the files are in the page cache); the better of two turns counts.
"""

from __future__ import annotations

import os
import tempfile
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

from monai.transforms.compose import Compose
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.spatial.dictionary import Orientationd, Spacingd
from monai.transforms.utility.dictionary import EnsureChannelFirstd
from scans import write_scans
from table import Row, options, show

from voxray.commands.ingest import ingest
from voxray.core.progress import SilentProgress
from voxray.core.recipe import Recipe
from voxray.dataset import read_dataset
from voxray.distributed.cluster import connect
from voxray.loading import list_cases
from voxray.recipes import read_recipe

TURNS = 2

DATASET = """
name = "enlarged"
licence = "unknown"
classes = ["spleen"]
[images]
glob = "*_ct.nii.gz"
case_id = '(.*)_ct'
[annotations]
"""

LABELS = """kind = "labels"
file = "{case}_labels.nii.gz"
objects = "none"
"""

BOXES = """kind = "boxes_csv"
file = "boxes.csv"
frame = "voxel"
class_column = "class"
"""


def main() -> None:
    """Measures both recipes and prints the table."""
    asked = options(__doc__ or "")
    number, shape = (4, (256, 256, 80)) if asked.quick else (12, (512, 512, 150))
    cores = os.cpu_count() or 1
    rows = []
    with tempfile.TemporaryDirectory() as folder, connect(num_cpus=cores):
        root = Path(folder)
        spacing = (0.8, 0.8, 2.5)
        ids = write_scans(root, number, shape, spacing)
        lines = [f"{case_id},spleen,40,50,20,60,75,28" for case_id in ids]
        (root / "boxes.csv").write_text("\n".join(["case,class,x1,y1,z1,x2,y2,z2", *lines]) + "\n")
        size = "x".join(map(str, shape))
        for name, text, keys in (("lung_nodule", BOXES, ("image",)), ("spleen", LABELS, ("image", "label"))):
            recipe = read_recipe(name)
            file = root / f"{name}.toml"
            file.write_text(DATASET + text)
            _voxray(file, recipe, root / "warm", 2)
            pairs = [
                (_monai(root, ids, recipe, keys, cores), _voxray(file, recipe, root / f"{name}_{turn}", number))
                for turn in range(TURNS)
            ]
            theirs, ours = (max(found) for found in zip(*pairs, strict=True))
            rows.append(Row(f"{name}: {size} with {' and '.join(keys)}", theirs, ours, "volumes/min", aim=3.0))
    show(rows, title=f"ingest against MONAI's transforms, {number} scans, {cores} cores", json_file=asked.json)


def _voxray(file: Path, recipe: Recipe, store: Path, number: int) -> float:
    dataset = read_dataset(file)
    others = tuple(source.case_id for source in list_cases(dataset)[number:])
    begin = time.perf_counter()
    report = ingest(dataset.model_copy(update={"exclude": others}), recipe, store, progress=SilentProgress())
    assert len(report.done) == number, report.failed
    return 60 * number / (time.perf_counter() - begin)


def _monai(root: Path, ids: list[str], recipe: Recipe, keys: tuple[str, ...], cores: int) -> float:
    files = {"image": "ct", "label": "labels"}
    data = [{key: str(root / f"{case_id}_{files[key]}.nii.gz") for key in keys} for case_id in ids]
    modes = {"image": "bilinear", "label": "nearest"}
    transform = Compose(
        [
            LoadImaged(keys),
            EnsureChannelFirstd(keys),
            Orientationd(keys, "RAS", labels=None),
            Spacingd(keys, pixdim=recipe.grid.spacing_mm, mode=tuple(modes[key] for key in keys)),
        ]
    )
    transform(data[0])
    begin = time.perf_counter()
    with ThreadPool(cores) as pool:
        for _ in pool.imap_unordered(transform, data):
            pass
    return 60 * len(data) / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
