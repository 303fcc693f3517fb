"""Layouts of object data sets that `pointadapt init` knows: those of the published benchmarks, and plain folders.

Each finder looks at a folder and returns what a dataset.yaml would say, or None. ``variant`` chooses where one folder
holds several data sets (ModelNet10 and 40, the variants of ScanObjectNN, few-shot episodes). Nothing but names and, for
array files, small heads are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from pointadapt.data.corruptions import CORRUPTIONS
from pointadapt.data.layout import Layout
from pointadapt.data.object_arrays import read_arrays
from pointadapt.data.object_classes import MODELNET10, MODELNET40, SCANOBJECTNN, SHAPENETPART, SHAPENETPART_NAMES
from pointadapt.data.object_set import ObjectSet
from pointadapt.errors import UserError
from pointadapt.files import read_text

Splits = dict[str, tuple[str, ...]]

ObjectLayout = Layout[ObjectSet]
#: file name between ``training_objectdataset`` / ``test_objectdataset`` and ``.h5``, and its folder.
SCANOBJECTNN_VARIANTS = {
    "PB_T50_RS": ("main_split", "_augmentedrot_scale75"),
    "PB_T50_R": ("main_split", "_augmentedrot"),
    "PB_T25_R": ("main_split", "_augmented25rot"),
    "PB_T25": ("main_split", "_augmented25_norot"),
    "OBJ_BG": ("main_split", ""),
    "OBJ_ONLY": ("main_split_nobg", ""),
}


def pick(folder: Path, found: Iterable[str], variant: str | None) -> str | None:
    """The variant asked for, or the first that is there. Raises UserError for one that is not."""
    names = list(found)
    if not names:
        return None
    if variant is not None and variant not in names:
        raise UserError(f"{folder}: there is no variant {variant!r} here; there are {', '.join(names)}")
    return variant or names[0]


def listed(file: Path) -> tuple[str, ...] | None:
    """Names in a file, one a line, if it is there."""
    if not file.is_file():
        return None
    return tuple(name for line in read_text(file).splitlines() if (name := line.strip()))


# --- ModelNet -------------------------------------------------------------------------------------------------------


def modelnet_text(folder: Path, variant: str | None) -> ObjectLayout | None:
    """modelnet40_normal_resampled: CLASS/NAME.txt, modelnet{40,10}_{train,test}.txt, modelnet40_shape_names.txt."""
    kinds = [
        kind
        for kind in ("modelnet40", "modelnet10")
        if all((folder / f"{kind}_{split}.txt").is_file() for split in ("train", "test"))
    ]
    kind = pick(folder, kinds, variant)
    if kind is None:
        return None
    classes = listed(folder / f"{kind}_shape_names.txt") or (MODELNET40 if kind == "modelnet40" else MODELNET10)
    splits: Splits = {split: (f"{kind}_{split}.txt",) for split in ("train", "test")}
    dataset = ObjectSet(folder, "classification", classes, splits=splits)
    return ObjectLayout(dataset, f"ModelNet{kind[8:]} (text files)", variants=tuple(kinds))


def modelnet_h5(folder: Path, variant: str | None) -> ObjectLayout | None:
    """modelnet40_ply_hdf5_2048: ply_data_train0.h5, ply_data_test0.h5, shape_names.txt. With ``pid``: ShapeNetPart."""
    splits = {
        split: tuple(sorted(f.name for f in folder.glob(f"ply_data_{split}*.h5"))) for split in ("train", "val", "test")
    }
    if not splits["train"]:
        return None
    if read_arrays(folder / splits["train"][0]).segment is not None:
        return ObjectLayout(shapenet_set(folder, splits), "ShapeNetPart (HDF5)")
    classes = listed(folder / "shape_names.txt") or MODELNET40
    return ObjectLayout(ObjectSet(folder, "classification", classes, splits=splits), "ModelNet40 (HDF5)")


def modelnet_dat(folder: Path, variant: str | None) -> ObjectLayout | None:
    """Point-MAE's pickles modelnet40_train_8192pts_fps.dat and modelnet40_test_8192pts_fps.dat."""
    kinds: dict[str, dict[str, tuple[str, ...]]] = {}
    for file in sorted(folder.glob("modelnet*_fps.dat"), reverse=True):
        if found := re.fullmatch(r"(modelnet(?:40|10))_(train|test)_\d+pts_fps\.dat", file.name):
            kinds.setdefault(found[1], {})[found[2]] = (file.name,)
    kind = pick(folder, kinds, variant)
    if kind is None:
        return None
    classes = listed(folder / f"{kind}_shape_names.txt") or (MODELNET40 if kind == "modelnet40" else MODELNET10)
    splits = {split: kinds[kind].get(split, ()) for split in ("train", "test")}
    dataset = ObjectSet(folder, "classification", classes, splits=splits)
    return ObjectLayout(dataset, f"ModelNet{kind[8:]} (Point-MAE's pickles)", variants=tuple(kinds))


def few_shot_pickles(folder: Path, variant: str | None) -> ObjectLayout | None:
    """{way}way_{shot}shot/{fold}.pkl, each with the train and test shapes of one episode."""
    files = {
        f"{file.parent.name}/{file.stem}": file
        for file in folder.glob("*way*shot/*.pkl")
        if re.fullmatch(r"\d+way_?\d+shot", file.parent.name)
    }
    names = sorted(files, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    name = pick(folder, names, variant)
    if name is None:
        return None
    way, most = int(re.findall(r"\d+", name)[0]), 0
    for split in ("train", "test"):
        label = read_arrays(files[name], split).label
        most = max(most, int(label.max()) if label is not None and len(label) else 0)
    classes = MODELNET40 if most >= way else tuple(f"class {i}" for i in range(way))
    splits: Splits = {split: (f"{name}.pkl#{split}",) for split in ("train", "test")}
    dataset = ObjectSet(folder, "classification", classes, splits=splits)
    return ObjectLayout(dataset, f"few-shot episode {name}", variants=tuple(names))


# --- ScanObjectNN, ShapeNetPart -------------------------------------------------------------------------------------


def scanobjectnn(folder: Path, variant: str | None) -> ObjectLayout | None:
    """main_split(_nobg)/{training,test}_objectdataset*.h5, also below h5_files/."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for name, (place, ending) in SCANOBJECTNN_VARIANTS.items():
        for above in ("", "h5_files/"):
            paths = {
                split: f"{above}{place}/{word}_objectdataset{ending}.h5"
                for split, word in (("train", "training"), ("test", "test"))
            }
            if all((folder / path).is_file() for path in paths.values()):
                found.setdefault(name, {split: (path,) for split, path in paths.items()})
    name_or_none = pick(folder, found, variant)
    if name_or_none is None:
        return None
    dataset = ObjectSet(
        folder,
        "classification",
        SCANOBJECTNN,
        splits=found[name_or_none],
        points=2048,
        normalize=False,
        transform="rotate",
    )
    notes = ("coordinates stay as they are: the published protocol does not normalise ScanObjectNN again",)
    return ObjectLayout(dataset, f"ScanObjectNN {name_or_none}", notes, tuple(found))


def shapenetpart(folder: Path, variant: str | None) -> ObjectLayout | None:
    """SYNSET/ID.txt, synsetoffset2category.txt, train_test_split/shuffled_{train,val,test}_file_list.json."""
    table = folder / "synsetoffset2category.txt"
    lists = {split: f"train_test_split/shuffled_{split}_file_list.json" for split in ("train", "val", "test")}
    if not table.is_file() or not (folder / lists["train"]).is_file():
        return None
    rows = [line.split() for line in read_text(table).splitlines() if line.strip()]
    if not all(len(row) == 2 and row[0] in SHAPENETPART for row in rows):
        raise UserError(
            f"{table}: it must hold lines of one of the 16 categories and its folder, such as Airplane 02691156"
        )
    folders = {synset: name for name, synset in rows}
    splits: Splits = {split: (path,) for split, path in lists.items() if (folder / path).is_file()}
    return ObjectLayout(shapenet_set(folder, splits, folders), "ShapeNetPart")


def shapenet_set(folder: Path, splits: dict[str, tuple[str, ...]], folders: dict[str, str] | None = None) -> ObjectSet:
    """All 16 categories and 50 parts, whatever part of them is there: heads and checkpoints then fit each other."""
    return ObjectSet(
        folder,
        "parts",
        SHAPENETPART_NAMES,
        categories=dict(SHAPENETPART),
        folders=folders or {},
        splits=splits,
        points=2048,
        transform="parts",
    )


# --- corruption suites ----------------------------------------------------------------------------------------------

SUITE_NAMES = {*CORRUPTIONS, "occlusion", "lidar"}
SUITE_FILE = re.compile(r"(?:data_)?([a-z_]+)_([0-9])\.(h5|npy)")


def suite_file(file: Path) -> re.Match[str] | None:
    """Its name taken apart, if it is one of a suite."""
    found = SUITE_FILE.fullmatch(file.name)
    return found if found and found[1] in SUITE_NAMES else None


def suites(folder: Path) -> dict[str, tuple[str, ...]]:
    """Test splits NAME_SEVERITY of the corruption suites in a folder or right below it.

    ModelNet40-C has data_NAME_1.npy to _5 and label.npy; ModelNet-C and ScanObjectNN-C have NAME_0.h5 to _4.
    """
    tests: dict[str, tuple[str, ...]] = {}
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        for file in sorted((*place.glob("*_[0-9].h5"), *place.glob("data_*_[0-9].npy"))):
            found = suite_file(file)
            if found is None:
                continue
            name = f"{found[1]}_{int(found[2]) + (found[3] == 'h5')}"
            name = f"{place.name}_{name}" if name in tests else name
            tests[name] = (file.relative_to(folder).as_posix(),)
    return tests


def suite_alone(folder: Path, variant: str | None) -> ObjectLayout | None:
    """A folder of nothing but corrupted shapes: no train split, to be scored with a run of another folder."""
    tests = suites(folder)
    if not tests:
        return None
    classes: tuple[str, ...] = MODELNET40
    label = read_arrays(folder / next(iter(tests.values()))[0]).label
    if "scanobject" in folder.resolve().name.lower() or (label is not None and label.max() < len(SCANOBJECTNN)):
        classes = SCANOBJECTNN
    clean = ("clean.h5",) if (folder / "clean.h5").is_file() else ()
    dataset = ObjectSet(
        folder, "classification", classes, splits={"test": clean}, tests=tests, normalize=classes is MODELNET40
    )
    return ObjectLayout(dataset, "corrupted shapes", ("there is nothing to learn from here: for evaluation alone",))


#: The finders of published layouts.
FINDERS: tuple[Callable[[Path, str | None], ObjectLayout | None], ...] = (
    modelnet_text,
    modelnet_h5,
    modelnet_dat,
    few_shot_pickles,
    scanobjectnn,
    shapenetpart,
)
