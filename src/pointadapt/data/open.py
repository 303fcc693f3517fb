"""Opening a data set of any kind by the ``task`` in its dataset.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pointadapt.data.object_set import TASKS, ObjectSet
from pointadapt.data.scans import YAML, DataSet, read_yaml
from pointadapt.data.video_set import VIDEO_TASKS, VideoSet
from pointadapt.errors import UserError

AnySet = DataSet | ObjectSet | VideoSet


def open_dataset(path: Path | str) -> AnySet:
    """An ObjectSet or a VideoSet where the yaml has a ``task``, else a DataSet of scenes. Raises UserError as their
    ``open`` do."""
    path = Path(path)
    file = path / YAML if path.is_dir() else path
    if file.suffix in (".yaml", ".yml") and file.is_file():
        return kind_of(read_yaml(file), file).open(path)
    return DataSet.open(path)


def dataset_from_dict(content: Any, folder: Path | str, file: Path | str = YAML) -> AnySet:
    """From what ``as_dict`` of any kind returned."""
    return kind_of(content, file).from_dict(content, folder, file)


def kind_of(content: Any, file: Path | str) -> type[DataSet] | type[ObjectSet] | type[VideoSet]:
    """What a yaml's content describes: scenes have no ``task``. Raises UserError for an unknown one."""
    task = content.get("task") if isinstance(content, dict) else None
    if not isinstance(content, dict) or "task" not in content:
        return DataSet
    if task in VIDEO_TASKS:
        return VideoSet
    if task not in TASKS:
        raise UserError(f"{file}: `task` must be one of {', '.join((*TASKS, *VIDEO_TASKS))}, not {task!r}")
    return ObjectSet
