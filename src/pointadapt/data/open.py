"""Opening a data set of either kind by the ``task`` in its dataset.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pointadapt.data.object_set import ObjectSet, read_yaml
from pointadapt.data.scans import YAML, DataSet


def open_dataset(path: Path | str) -> DataSet | ObjectSet:
    """An ObjectSet where the yaml has a ``task``, else a DataSet of scenes. Raises UserError as their ``open`` do."""
    path = Path(path)
    file = path / YAML if path.is_dir() else path
    if file.suffix in (".yaml", ".yml") and file.is_file() and is_objects(read_yaml(file)):
        return ObjectSet.open(path)
    return DataSet.open(path)


def dataset_from_dict(content: Any, folder: Path | str, file: Path | str = YAML) -> DataSet | ObjectSet:
    """From what ``as_dict`` of either kind returned."""
    kind: type[DataSet] | type[ObjectSet] = ObjectSet if is_objects(content) else DataSet
    return kind.from_dict(content, folder, file)


def is_objects(content: Any) -> bool:
    """Whether a yaml's content describes single objects rather than scenes."""
    return isinstance(content, dict) and "task" in content
