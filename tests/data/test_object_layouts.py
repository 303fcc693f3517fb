"""init on every layout that is known: the published benchmarks, class folders, array files; each read back."""

import numpy as np
import pytest

from pointadapt.data.object_classes import MODELNET10, MODELNET40, SCANOBJECTNN, SHAPENETPART, SHAPENETPART_NAMES
from pointadapt.data.object_folders import find_objects
from pointadapt.data.object_layouts import SCANOBJECTNN_VARIANTS
from pointadapt.data.object_set import ObjectSet
from pointadapt.data.object_survey import init_objects, shapes_by_class, warnings
from pointadapt.data.objects import ObjectItems
from pointadapt.errors import UserError
from shapes import (
    class_folders,
    cloud,
    stack,
    write_h5,
    write_json,
    write_off,
    write_pickle,
    write_txt,
)


def opened(folder, **choices):
    """The data set after a round through dataset.yaml."""
    layout = find_objects(folder, **choices)
    assert layout is not None
    dataset = ObjectSet.open(init_objects(folder, layout, overwrite=True))
    assert dataset == ObjectSet.from_dict(layout.dataset.as_dict(), folder)
    return dataset


def counts(dataset):
    return {split: dict(count) for split, count in shapes_by_class(dataset).items()}


def test_class_lists_are_the_published_ones():
    assert len(MODELNET40) == len(set(MODELNET40)) == 40 and list(MODELNET40) == sorted(MODELNET40)
    assert set(MODELNET10) < set(MODELNET40) and len(MODELNET10) == 10
    assert len(SCANOBJECTNN) == 15 and SCANOBJECTNN[0] == "bag" and SCANOBJECTNN[-1] == "toilet"
    assert [part for parts in SHAPENETPART.values() for part in parts] == list(range(50)) and len(SHAPENETPART) == 16
    assert SHAPENETPART_NAMES[6:8] == ("Cap 1", "Cap 2")


# --- ModelNet -------------------------------------------------------------------------------------------------------


def modelnet_text(root):
    listed = {"train": ["airplane_0001", "night_stand_0001"], "test": ["night_stand_0002"]}
    for names in listed.values():
        for i, name in enumerate(names):
            values = np.concatenate([cloud(i, 120), cloud(i + 50, 120)], 1)
            write_txt(root / name.rsplit("_", 1)[0] / f"{name}.txt", values)
    for kind, classes in (("modelnet40", MODELNET40), ("modelnet10", MODELNET10)):
        (root / f"{kind}_shape_names.txt").write_text("\n".join(classes) + "\n")
        for split, names in listed.items():
            chosen = [name for name in names if name.rsplit("_", 1)[0] in classes]
            (root / f"{kind}_{split}.txt").write_text("".join(f"{name}\n" for name in chosen))
    return root


def test_modelnet_text(tmp_path):
    dataset = opened(modelnet_text(tmp_path), points=100)
    assert dataset.classes == MODELNET40 and dataset.up == "y" and dataset.normalize and dataset.holdout == 0
    assert counts(dataset) == {"train": {"airplane": 1, "night_stand": 1}, "test": {"night_stand": 1}}
    items = ObjectItems(dataset, "test")
    assert items[0]["name"] == "night_stand/night_stand_0002.txt" and items[0]["label"] == 23
    small = opened(tmp_path, variant="modelnet10", points=100)
    assert small.classes == MODELNET10 and counts(small)["train"] == {"night_stand": 1}
    with pytest.raises(UserError, match="no variant 'modelnet20' here; there are modelnet40, modelnet10"):
        find_objects(tmp_path, variant="modelnet20")


def test_modelnet_text_with_a_missing_shape(tmp_path):
    modelnet_text(tmp_path)
    (tmp_path / "night_stand" / "night_stand_0002.txt").unlink()
    with pytest.raises(UserError, match="modelnet40_test.txt: it lists night_stand_0002, for which there is no file"):
        init_objects(tmp_path)


def test_modelnet_h5(tmp_path):
    for split, file, labels in (("train", 0, [0, 3]), ("train", 1, [39]), ("test", 0, [3])):
        label = np.array(labels, np.uint8)[:, None]
        write_h5(tmp_path / f"ply_data_{split}{file}.h5", data=stack(len(labels), 128, file), label=label, normal=[0])
    dataset = opened(tmp_path)
    assert counts(dataset) == {"train": {"airplane": 1, "bench": 1, "xbox": 1}, "test": {"bench": 1}}
    assert [item.name for item in dataset.items("train")][-1] == "ply_data_train1.h5#0"
    assert dataset.classes == MODELNET40


def test_shapenetpart_h5(tmp_path):
    pid = np.array([[6, 7] * 64, [4, 5] * 64])
    write_h5(tmp_path / "ply_data_train0.h5", data=stack(2, 128), label=np.array([[2], [1]]), pid=pid)
    dataset = opened(tmp_path)
    assert dataset.task == "parts" and counts(dataset)["train"] == {"Cap": 1, "Bag": 1}
    items = ObjectItems(dataset, "train")
    assert {i["category"] for i in items} == {1, 2} and set(items[0]["segment"]) <= {6, 7}


def test_point_mae_pickles(tmp_path):
    for split, labels in (("train", [0, 1, 39]), ("test", [39])):
        content = [[cloud(i, 150) for i in labels], [np.array([label]) for label in labels]]
        write_pickle(tmp_path / f"modelnet40_{split}_8192pts_fps.dat", content)
    dataset = opened(tmp_path, points=128)
    assert counts(dataset) == {"train": {"airplane": 1, "bathtub": 1, "xbox": 1}, "test": {"xbox": 1}}
    assert ObjectItems(dataset, "test")[0]["coord"].shape == (128, 3)


def test_few_shot_pickles(tmp_path):
    for fold in range(3):
        content = {
            "train": [(cloud(i, 100), i % 5, f"shape {i}") for i in range(10)],
            "test": [(cloud(100 + i, 100), i % 5, i) for i in range(15)],
        }
        write_pickle(tmp_path / "5way_2shot" / f"{fold}.pkl", content)
    dataset = opened(tmp_path, points=64)
    assert dataset.splits["train"] == ("5way_2shot/0.pkl#train",) and len(dataset.classes) == 5
    assert set(counts(dataset)["train"].values()) == {2} and set(counts(dataset)["test"].values()) == {3}
    assert opened(tmp_path, variant="5way_2shot/2", points=64).splits["test"] == ("5way_2shot/2.pkl#test",)
    one = ObjectSet.from_dict({**dataset.as_dict(), "splits": {"test": ["5way_2shot/1.pkl#test/14"]}}, tmp_path)
    assert [(item.name, item.target) for item in one.items("test")] == [("5way_2shot/1.pkl#test/14", 4)]
    assert any("several data sets" in warning for warning in warnings(find_objects(tmp_path)))


# --- ScanObjectNN, ShapeNetPart -------------------------------------------------------------------------------------


def test_scanobjectnn(tmp_path):
    for name, (place, ending) in SCANOBJECTNN_VARIANTS.items():
        for word, labels in (("training", [0, 14, 14]), ("test", [7])):
            mask = np.zeros((len(labels), 2048))
            data = stack(len(labels), 2048, len(name)) + 5
            file = tmp_path / "h5_files" / place / f"{word}_objectdataset{ending}.h5"
            write_h5(file, data=data, label=np.array(labels), mask=mask)
    dataset = opened(tmp_path)
    assert dataset.splits["train"] == ("h5_files/main_split/training_objectdataset_augmentedrot_scale75.h5",)
    assert dataset.points == 2048 and not dataset.normalize and dataset.transform == "rotate"
    assert counts(dataset) == {"train": {"bag": 1, "toilet": 2}, "test": {"door": 1}}
    assert ObjectItems(dataset, "test")[0]["coord"].mean() == pytest.approx(5, abs=0.2)  # not normalised again
    only = opened(tmp_path, variant="OBJ_ONLY")
    assert only.splits["test"] == ("h5_files/main_split_nobg/test_objectdataset.h5",)
    assert len({opened(tmp_path, variant=name).splits["train"] for name in SCANOBJECTNN_VARIANTS}) == 6


def test_shapenetpart(tmp_path):
    synsets = {"Cap": "02954340", "Bag": "02773838"}
    (tmp_path / "synsetoffset2category.txt").write_text("".join(f"{k}\t{v}\n" for k, v in synsets.items()))
    names = {"train": ["02954340/a", "02773838/b"], "val": ["02954340/c"], "test": ["02773838/d"]}
    for split, shapes in names.items():
        write_json(
            tmp_path / "train_test_split" / f"shuffled_{split}_file_list.json", [f"shape_data/{n}" for n in shapes]
        )
        for name in shapes:
            part = np.resize([6, 7] if name.startswith("02954340") else [4, 5], (300, 1))
            write_txt(tmp_path / f"{name}.txt", np.concatenate([cloud(1, 300), cloud(2, 300), part], 1), " ")
    dataset = opened(tmp_path, points=256)
    assert dataset.task == "parts" and dataset.transform == "parts" and len(dataset.names) == 50
    assert counts(dataset) == {"train": {"Cap": 1, "Bag": 1}, "val": {"Cap": 1}, "test": {"Bag": 1}}
    cap = ObjectItems(dataset, "val")[0]
    assert cap["category"] == 2 and set(cap["segment"]) == {6, 7} and cap["name"] == "02954340/c.txt"
    shape = np.loadtxt(tmp_path / "02954340" / "c.txt")
    assert (shape[cap["index"], 6] == cap["segment"]).all()  # parts stay with their points


# --- corruption suites ----------------------------------------------------------------------------------------------


def test_corruption_suites_are_test_splits(tmp_path):
    modelnet_text(tmp_path)
    for level in (1, 5):
        place = tmp_path / "modelnet40_c"
        place.mkdir(exist_ok=True)
        np.save(place / f"data_uniform_{level}.npy", stack(2, 128, level))
        np.save(place / f"data_density_inc_{level}.npy", stack(2, 64, level))
        write_h5(tmp_path / "modelnet_c" / f"add_local_{level - 1}.h5", data=stack(3, 150), label=np.array([1, 2, 3]))
    np.save(place / "label.npy", np.array([[5], [6]]))
    dataset = opened(tmp_path, points=100)
    suites = ["add_local_1", "add_local_5", "density_inc_1", "density_inc_5", "uniform_1", "uniform_5"]
    assert sorted(dataset.tests) == suites
    assert counts(dataset)["uniform_5"] == {"bottle": 1, "bowl": 1}
    few = ObjectItems(dataset, "density_inc_1")[0]["coord"]  # fewer points than asked for: all, and as they are
    assert np.array_equal(np.sort(few, 0), np.sort(np.load(tmp_path / dataset.tests["density_inc_1"][0])[0], 0))
    assert len(ObjectItems(dataset, "add_local_5")) == 3


def test_a_suite_alone(tmp_path):
    folder = tmp_path / "scanobjectnn_c"
    for level in range(5):
        write_h5(folder / f"jitter_{level}.h5", data=stack(2, 100), label=np.array([0, 14]))
    write_h5(folder / "clean.h5", data=stack(2, 100), label=np.array([0, 14]))
    dataset = opened(folder)
    assert dataset.classes == SCANOBJECTNN and dataset.splits["test"] == ("clean.h5",) and len(dataset.tests) == 5
    assert any("nothing to learn from" in note for note in warnings(find_objects(folder)))


# --- folders --------------------------------------------------------------------------------------------------------


def test_class_then_split(tmp_path):
    class_folders(tmp_path, {"cup/train": 3, "cup/test": 1, "vase/train": 2, "vase/val": 1, "vase/test": 2})
    dataset = opened(tmp_path)
    assert dataset.classes == ("cup", "vase") and dataset.points == 200 and dataset.up == "z"
    expected = {"train": {"cup": 3, "vase": 2}, "val": {"vase": 1}, "test": {"cup": 1, "vase": 2}}
    assert counts(dataset) == expected


def test_one_small_shape_does_not_shrink_the_others(tmp_path):
    class_folders(tmp_path, {"cup": 3, "vase": 2}, points=200)
    np.save(tmp_path / "cup" / "stray.npy", cloud(7, 10))
    layout = find_objects(tmp_path)
    assert layout.dataset.points == 200
    assert any("stray.npy has 10 points, far fewer than most" in note for note in layout.notes)
    np.save(tmp_path / "cup" / "stray.npy", cloud(7, 150))  # not far fewer: all shapes have as many
    layout = find_objects(tmp_path)
    assert layout.dataset.points == 150 and len(layout.notes) == 1


def test_split_then_class_with_many_formats(tmp_path):
    write_off(tmp_path / "train" / "box" / "a.off")
    write_txt(tmp_path / "train" / "blob" / "b.xyz", cloud(0, 2000), " ")
    class_folders(tmp_path, {"validation/box": 1, "validation/blob": 1}, points=2000)
    dataset = opened(tmp_path)
    assert dataset.points == 1024 and dataset.classes == ("blob", "box")
    assert counts(dataset) == {"train": {"box": 1, "blob": 1}, "val": {"box": 1, "blob": 1}}
    assert [len(sample["coord"]) for sample in ObjectItems(dataset, "train")] == [1024, 1024]


def test_classes_alone_are_split_by_seed(tmp_path):
    class_folders(tmp_path, {"cup": 10, "vase": 20})
    dataset = opened(tmp_path)
    assert dataset.holdout == 0.2
    assert counts(dataset) == {"train": {"cup": 8, "vase": 16}, "val": {"cup": 2, "vase": 4}}
    held = {item.name for item in dataset.items("val")}
    assert not held & {item.name for item in dataset.items("train")}
    class_folders(
        tmp_path, {"vase": 25}
    )  # more shapes: those held out stay held out or move out by chance, not at will
    assert len(held & {item.name for item in ObjectSet.open(tmp_path).items("val")}) >= 4
    assert opened(tmp_path, val=0.5).holdout == 0.5


def test_unknown_class_folder(tmp_path):
    class_folders(tmp_path, {"train/cup": 1, "train/vase": 1, "test/cup": 1, "test/jar": 1})
    with pytest.raises(UserError, match="jar: train has no class 'jar', it has cup, vase"):
        find_objects(tmp_path)
    class_folders(tmp_path / "b", {"cup/train": 1, "vase/train": 1, "jar/test": 1})
    with pytest.raises(UserError, match="jar .test.: train has no class 'jar'"):
        find_objects(tmp_path / "b")


def test_parts_in_folders(tmp_path):
    for number, (place, parts) in enumerate({"cup/train": [0, 1], "vase/train": [2, 3, 4], "vase/test": [4]}.items()):
        values = np.concatenate([cloud(number, 90), np.resize(parts, (90, 1))], 1)
        write_txt(tmp_path / place / "a.txt", values, " ")
    dataset = opened(tmp_path, task="parts")
    assert dataset.categories == {"cup": (0, 1), "vase": (2, 3, 4)} and dataset.points == 90
    assert counts(dataset) == {"train": {"cup": 1, "vase": 1}, "test": {"vase": 1}}
    write_txt(tmp_path / "cup" / "train" / "b.txt", np.concatenate([cloud(0, 90), np.full((90, 1), 3)], 1), " ")
    with pytest.raises(UserError, match="counted through all categories"):
        find_objects(tmp_path, task="parts")


# --- array files ----------------------------------------------------------------------------------------------------


def test_npz_of_16_bits(tmp_path):
    coord = (stack(4, 100).clip(-1, 1) * 32767).astype(np.int16)
    for split in ("train", "test"):
        np.savez(
            tmp_path / f"shapes_{split}.npz", xyz_q=coord, label=np.array([0, 1, 1, 0], np.int8), classes=["a", "b"]
        )
    dataset = opened(tmp_path)
    assert dataset.classes == ("a", "b") and dataset.points == 100
    assert counts(dataset) == {"train": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}}
    sample = ObjectItems(ObjectSet.from_dict({**dataset.as_dict(), "normalize": False, "up": "y"}, tmp_path), "test")[1]
    assert sample["coord"] == pytest.approx(coord[1][sample["index"]] / 32767)


def test_packed_parts(tmp_path):
    values = np.concatenate([cloud(0, 70), cloud(1, 90)])
    for name, part in (("shapenet_val", 6), ("shapenet_test", 6)):
        segment = np.full(160, part, np.int8)
        segment[::3] += 1
        np.savez(tmp_path / f"{name}.npz", xyz=values, part=segment, shape_ptr=np.array([0, 70, 160], np.int32))
    layout = find_objects(tmp_path)
    assert any("no file is called train" in note for note in layout.notes)
    dataset = opened(tmp_path)
    assert dataset.splits["train"] == ("shapenet_val.npz",) and counts(dataset)["train"] == {"Cap": 2}
    assert [len(s["coord"]) for s in ObjectItems(dataset, "test")] == [70, 90]


def test_arrays_without_class_names(tmp_path):
    np.save(tmp_path / "train.npy", stack(3, 100))
    np.save(tmp_path / "train_labels.npy", np.array([0, 2, 1]))
    dataset = opened(tmp_path)
    assert dataset.classes == ("class 0", "class 1", "class 2") and dataset.holdout == 0.2


def test_class_names_may_have_blanks(tmp_path):
    np.save(tmp_path / "train.npy", stack(2, 100))
    np.save(tmp_path / "train_labels.npy", np.array([0, 1]))
    (tmp_path / "shape_names.txt").write_text("traffic cone\nchair\n")
    assert opened(tmp_path).classes == ("traffic cone", "chair")


# --- what is no object data set -------------------------------------------------------------------------------------


def test_scenes_are_left_to_scenes(tmp_path):
    for area in ("Area_1", "Area_2"):
        place = tmp_path / area / "office_1"
        place.mkdir(parents=True)
        np.save(place / "coord.npy", cloud(0))
        np.save(place / "color.npy", cloud(1))
    assert find_objects(tmp_path) is None
    for city in ("bonn", "lyon"):  # labels of points beside them
        place = tmp_path / "b" / city
        place.mkdir(parents=True)
        np.save(place / "scan.npy", cloud(0))
        np.save(place / "scan_labels.npy", np.zeros(200, int))
    assert find_objects(tmp_path / "b") is None
    (tmp_path / "c" / "x").mkdir(parents=True)
    (tmp_path / "c" / "y").mkdir()
    for name in "xy":
        (tmp_path / "c" / name / "a.laz").write_bytes(b"LASF")
    assert find_objects(tmp_path / "c") is None
    assert find_objects(class_folders(tmp_path / "d", {"cup": 1, "jar": 1}), task="scenes") is None
    with pytest.raises(UserError, match="no shapes for parts"):
        find_objects(tmp_path / "c" / "x", task="parts")
    assert find_objects(tmp_path / "nowhere") is None


def test_predictions_are_no_shapes(tmp_path):
    class_folders(tmp_path, {"train/cup": 2, "train/jar": 2, "test/cup": 1, "test/jar": 1})
    dataset = opened(tmp_path)
    before = counts(dataset)
    for name in ("test/cup/s0_labelled.csv", "test/cup_labelled/predictions.csv", "train_labelled/predictions.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("file,class,confidence\ns0.npy,cup,1.000000\n")
    assert counts(dataset) == before == counts(opened(tmp_path))


def test_task_and_variant_must_fit(tmp_path):
    write_h5(tmp_path / "ply_data_train0.h5", data=stack(2, 128), label=np.array([1, 2]))
    with pytest.raises(UserError, match="ModelNet40 .HDF5., a data set for classification, not for parts"):
        find_objects(tmp_path, task="parts")
    with pytest.raises(UserError, match="no variants of ModelNet40"):
        find_objects(tmp_path, variant="OBJ_BG")
    with pytest.raises(UserError, match="`points` must be a whole number"):
        find_objects(tmp_path, points=-1)
    init_objects(tmp_path)
    with pytest.raises(UserError, match="dataset.yaml exists already"):
        init_objects(tmp_path)
