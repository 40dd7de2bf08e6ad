"""COCO's JSON: labels, lists and masks, on a data set made here whose masks are known pixel by pixel."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as tools

from distwsss.config.data import DataSection
from distwsss.config.load import check_config
from distwsss.config.schema import Config
from distwsss.data.prepare import prepare
from distwsss.data.shards.index import load_index
from distwsss.data.shards.reader import read_fields, read_truth
from distwsss.data.shards.verify import verify
from distwsss.data.sources.coco_mask import CocoMask, Region, run_lengths
from distwsss.data.sources.datasets import DATASETS
from distwsss.data.sources.listing import Listing
from distwsss.errors import ConfigError, DataError
from distwsss.runtime.layout import images_dir, shard_dir

HEIGHT, WIDTH = 12, 16
HERE = {"hardware": {"workers": 0}}
CATEGORIES = [{"id": 44, "name": "bottle"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
NAMES = ["background", "person", "bottle", "toothbrush"]  # labels 1, 2, 3 by ascending id


def box(top: int, left: int, bottom: int, right: int) -> list[float]:
    """A polygon around exactly the pixels [top:bottom, left:right]."""
    return [left, top, right, top, right, bottom, left, bottom]


def counts(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths, column by column, starting with the zeros; by plain counting."""
    lengths, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    return lengths


def ring() -> np.ndarray:
    """bool[H,W]: a square with a hole."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[2:10, 3:13] = True
    mask[4:8, 6:10] = False
    return mask


def rle(mask: np.ndarray) -> dict[str, Any]:
    return {"size": [HEIGHT, WIDTH], "counts": counts(mask)}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    found = tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def annotation(category: int, segmentation: Any, crowd: int = 0) -> dict[str, Any]:
    return {"category_id": category, "segmentation": segmentation, "iscrowd": crowd, "area": 1.0}


def crowd_region() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, 8:] = True
    return mask


# image -> annotations (category ids, in the order of the file)
ANNOTATIONS: dict[str, list[dict[str, Any]]] = {
    "two_parts.jpg": [annotation(90, [box(0, 0, 3, 4), box(8, 10, 12, 16)])],
    "overlap.jpg": [annotation(44, [box(4, 4, 7, 7)]), annotation(1, [box(2, 2, 10, 12)])],  # the smaller comes first
    "hole.jpg": [annotation(44, [box(0, 0, 12, 16)]), annotation(1, rle(ring()))],
    "hole_compressed.jpg": [annotation(1, compressed(ring()))],
    "crowd.jpg": [annotation(1, rle(crowd_region()), 1), annotation(44, [box(0, 6, 4, 10)])],
    "crowd_only.jpg": [annotation(90, compressed(crowd_region()), 1)],
    "equal.jpg": [annotation(1, [box(0, 0, 4, 4)]), annotation(44, [box(2, 2, 6, 6)])],  # of equal size
    "empty.jpg": [],
}
LABELS = {"two_parts": [3], "overlap": [1, 2], "hole": [1, 2], "hole_compressed": [1], "crowd": [1, 2],
          "crowd_only": [3], "equal": [1, 2]}  # fmt: skip


def known_masks(crowd: str) -> dict[str, np.ndarray]:
    """Written down by hand, with slices; `empty` is left out."""
    masks = {name: np.zeros((HEIGHT, WIDTH), np.uint8) for name in LABELS}
    masks["two_parts"][0:3, 0:4] = masks["two_parts"][8:12, 10:16] = 3
    masks["overlap"][2:10, 2:12] = 1
    masks["overlap"][4:7, 4:7] = 2
    masks["hole"][:] = 2
    masks["hole"][2:10, 3:13] = 1
    masks["hole"][4:8, 6:10] = 2
    masks["hole_compressed"][ring()] = 1
    masks["crowd"][:, 8:] = 255 if crowd == "ignore" else 1
    masks["crowd"][0:4, 6:10] = 2
    masks["crowd_only"][:, 8:] = 255 if crowd == "ignore" else 3
    masks["equal"][0:4, 0:4] = 1
    masks["equal"][2:6, 2:6] = 2
    return masks


def write_split(root: Path, name: str, annotations: dict[str, list[dict[str, Any]]]) -> None:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / name).mkdir(exist_ok=True)
    images, flat = [], []
    for number, (file, of_image) in enumerate(annotations.items()):
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(root / name / file)
        images.append({"id": 1000 - number, "file_name": file, "height": HEIGHT, "width": WIDTH})
        flat += [{"id": len(flat) + n, "image_id": 1000 - number, **entry} for n, entry in enumerate(of_image)]
    tree = {"images": images, "annotations": flat, "categories": CATEGORIES}
    (root / f"annotations/instances_{name}.json").write_text(json.dumps(tree))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    write_split(root, "train2014", ANNOTATIONS)
    write_split(root, "val2014", {f"v_{name}": found for name, found in ANNOTATIONS.items() if "crowd" in name})
    return root


def settings(root: Path, folder: Path, **data: Any) -> Config:
    paths = {"shards": str(folder / "shards"), "run": str(folder / "run")}
    section = {"dataset": "coco", "root": str(root), **data}
    return check_config({"name": "test", "paths": paths, "data": section, "prepare": {"shard_size": 3}, **HERE})


def listing(root: Path, split: str = "train", **data: Any) -> Listing:
    return DATASETS["coco"](DataSection(dataset="coco", root=str(root), **data), split)


@pytest.mark.parametrize("crowd", ["ignore", "paint"])
def test_the_data_set_goes_through_prepare_pixel_by_pixel(coco: Path, tmp_path: Path, crowd: str) -> None:
    config = settings(coco, tmp_path, crowd=crowd)
    prepare(config)
    prepare(config)
    assert verify(shard_dir(config)) == []
    index = load_index(images_dir(config, "train"), "images")
    assert (index.classes, index.extra["category_ids"]) == (NAMES, [0, 1, 44, 90])
    assert index.extra["labels_from"] == "json"
    known, seen = known_masks(crowd), set()
    for shard, count in enumerate(index.counts):
        for position in range(count):
            key = index.key(shard, position)
            sample = read_fields(index, shard, position, ["jpg", "json"])
            assert sample["jpg"] == (coco / f"train2014/{key}.jpg").read_bytes()
            assert json.loads(sample["json"])["labels"] == LABELS[key]
            truth = read_truth(index, shard, position)
            assert truth is not None
            assert (truth == known[key]).all(), key
            seen.add(key)
    assert seen == LABELS.keys()
    assert set(load_index(images_dir(config, "val")).all().keys()) == {"v_crowd", "v_crowd_only"}


def test_crowd_is_of_masks_alone(coco: Path, tmp_path: Path) -> None:
    configs = [settings(coco, tmp_path / crowd, crowd=crowd) for crowd in ("ignore", "paint")]
    for config in configs:
        prepare(config)
    old, new = (load_index(images_dir(config, "train")) for config in configs)
    assert old.fingerprint == new.fingerprint
    assert old.extra["truth"] != new.extra["truth"]
    with pytest.raises(ConfigError, match="masks changed, come or gone"):
        prepare(settings(coco, tmp_path / "ignore", crowd="paint"))


def test_a_mask_travels_to_other_processes_and_its_digest_says_what_it_draws(coco: Path) -> None:
    first, again = ({item.name: item.mask for item in listing(coco).items} for _ in range(2))
    known = known_masks("ignore")
    digests = set()
    for name, mask in first.items():
        assert isinstance(mask, CocoMask)
        assert (pickle.loads(pickle.dumps(mask)).draw() == known[name.partition(".")[0]]).all()
        assert mask.digest() == again[name].digest()  # type: ignore[union-attr]
        digests.add(mask.digest())
    assert len(digests) == len(first)


def test_a_split_may_name_the_other_year(coco: Path) -> None:
    write_split(coco, "val2017", {"one.jpg": [annotation(1, [box(0, 0, 2, 2)])]})
    assert [item.name for item in listing(coco, "val2017").items] == ["one.jpg"]


def test_a_split_that_is_not_there_is_empty(coco: Path) -> None:
    found = listing(coco, "test")
    assert found.items == []
    assert found.where.endswith("annotations/instances_test2014.json")


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(st.integers(0, 1), min_size=1, max_size=300), st.integers(1, 12))
def test_compressed_run_lengths_are_those_of_pycocotools(pixels: list[int], repeat: int) -> None:
    mask = np.repeat(np.array(pixels, np.uint8), repeat)[:, None]
    text = tools.encode(np.asfortranarray(mask))["counts"].decode()
    assert run_lengths(text) == counts(mask)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 5, 1]], "polygons of 3 or more points"),
        ([[1, 1, 5, 1, 5, 5, 1]], "polygons of 3 or more points"),
        ([[1, 1, 5, 1, 5, float("nan")]], "polygons of 3 or more points"),
        ([[1, 1, 5, 1, 5, 1e12]], "polygons of 3 or more points"),
        ([["1", 1, 5, 1, 5, 5]], "polygons of 3 or more points"),
        ("nothing", "polygons of 3 or more points"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "found RLE of 10 pixels; allowed: 192"),
        ({"size": [HEIGHT, WIDTH], "counts": [-8, 200]}, "found RLE counts"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "found RLE of 0 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": compressed(ring())["counts"][:-1]}, "found RLE"),
        ({"size": [WIDTH, HEIGHT], "counts": counts(ring())}, r"found RLE of size \[16, 12\]"),
        ({"counts": counts(ring())}, "found RLE of size None"),
    ],
)
def test_segmentations_that_cannot_be_drawn(coco: Path, tmp_path: Path, segmentation: Any, message: str) -> None:
    write_split(coco, "train2014", {**ANNOTATIONS, "bad.jpg": [annotation(1, segmentation)]})
    with pytest.raises(DataError, match=rf"(?s)1 problem\).*train: bad\.jpg: mask: .*{message}"):
        prepare(settings(coco, tmp_path))
    assert not (tmp_path / "shards").exists()


def edited(root: Path, **changes: Any) -> None:
    path = root / "annotations/instances_train2014.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": [*CATEGORIES, CATEGORIES[0]]}, r"found category ids \[1, 44, 44, 90\]: some twice"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": "b", "name": "b"}]}, r"found category ids \[1, 'b'\]"),
        ({"annotations": [{"id": 7, "image_id": 5, "category_id": 1}]}, "annotation 7: found category 1 of image 5"),
        (
            {"annotations": [{"id": 7, "image_id": 1000, "caption": "a dog"}]},
            "not COCO's format .KeyError: 'category_id",
        ),
        ({"images": {"a": 1}}, "not COCO's format"),
    ],
)
def test_a_json_that_is_not_cocos(coco: Path, changes: dict[str, Any], message: str) -> None:
    edited(coco, **changes)
    with pytest.raises(DataError, match=rf"instances_train2014\.json: .*{message}"):
        listing(coco)


def test_captions_are_no_instances(coco: Path) -> None:
    captions = {"images": [], "annotations": [{"image_id": 1, "caption": "a dog"}]}
    (coco / "annotations/instances_train2014.json").write_text(json.dumps(captions))
    with pytest.raises(
        DataError, match=r"KeyError: 'categories'; it holds images, annotations\); allowed: .*instances"
    ):
        listing(coco)


# --- without outlines ---

NO_OUTLINE: dict[str, dict[str, Any]] = {
    "missing": {}, "null": {"segmentation": None}, "list": {"segmentation": []}, "lists": {"segmentation": [[]]},
    "mapping": {"segmentation": {}}, "text": {"segmentation": ""},
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_OUTLINE)
def test_tags_and_boxes_are_enough(coco: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """An image of which any annotation has no outline has no mask; the others keep theirs."""
    caplog.set_level(logging.INFO, "distwsss")
    bare = {"category_id": 44, "bbox": [1, 1, 5, 4], "supercategory": "thing", **NO_OUTLINE[kind]}
    boxes = {"boxes.jpg": [bare, {**bare, "category_id": 1}], "some.jpg": [annotation(90, [box(0, 0, 3, 4)]), bare]}
    write_split(coco, "train2014", {**ANNOTATIONS, **boxes})
    config = settings(coco, tmp_path)
    prepare(config)
    index = load_index(images_dir(config, "train"), "images")
    found = {index.key(*place): place for place in index.all().places()}
    labels = {key: json.loads(read_fields(index, *place, ["json"])["json"])["labels"] for key, place in found.items()}
    assert labels == {**LABELS, "boxes": [1, 2], "some": [2, 3]}
    assert {key for key, place in found.items() if read_truth(index, *place) is None} == {"boxes", "some"}
    assert "2 of 9 images have annotations without outlines: no masks of them" in caplog.text


def test_a_size_is_needed_for_masks_alone(coco: Path) -> None:
    image = {"id": 1000, "file_name": "two_parts.jpg"}
    edited(coco, images=[image], annotations=[{"image_id": 1000, "category_id": 1}])
    assert [(item.labels, item.mask, item.problems) for item in listing(coco).items] == [([1], None, [])]
    edited(coco, images=[image], annotations=[{"image_id": 1000, **annotation(1, [box(0, 0, 2, 2)])}])
    assert "found None x None pixels" in listing(coco).items[0].problems[0]


@pytest.mark.parametrize(("of_images", "of_annotations"), [(str, int), (int, str), (str, str), (int, float)])
def test_ids_as_text_or_decimals(coco: Path, of_images: type, of_annotations: type) -> None:
    tree = json.loads((coco / "annotations/instances_train2014.json").read_text())
    wanted = {item.name: item.labels for item in listing(coco).items}
    for entry in (*tree["images"], *tree["categories"]):
        entry["id"] = of_images(entry["id"])
    for entry in tree["annotations"]:
        entry.update({key: of_annotations(entry[key]) for key in ("image_id", "category_id")})
    edited(coco, **tree)
    assert {item.name: item.labels for item in listing(coco).items} == wanted


def test_categories_may_begin_at_0_have_gaps_and_not_occur(coco: Path) -> None:
    categories = [
        {"id": 0, "name": "zero"},
        {"id": 700, "name": "unused", "supercategory": "zero"},
        {"id": 7, "name": "x"},
    ]
    edited(coco, categories=categories, annotations=[{"image_id": 1000, "category_id": n} for n in (0, 7)])
    found = listing(coco)
    assert (found.classes, found.items[0].labels) == (["background", "zero", "x", "unused"], [1, 2])
    edited(coco, categories=[{"id": 0, "name": "background"}, *categories[1:]])
    edited(coco, annotations=[{"image_id": 1000, "category_id": 7}])
    found = listing(coco)
    assert (found.classes, found.items[0].labels) == (["background", "x", "unused"], [1])


def test_an_unknown_category_is_a_problem_of_its_image(coco: Path, tmp_path: Path) -> None:
    edited(coco, categories=CATEGORIES[:2])
    problems = {item.name: item.problems for item in listing(coco).items if item.problems}
    assert problems.keys() == {"two_parts.jpg", "crowd_only.jpg"}
    assert "found category 90 of image 1000; allowed: ids of `categories`" in problems["two_parts.jpg"][0]


def test_annotations_of_images_that_are_not_listed_are_counted(coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = json.loads((coco / "annotations/instances_train2014.json").read_text())
    edited(coco, images=tree["images"][1:])
    assert {item.name.partition(".")[0] for item in listing(coco).items} == LABELS.keys() - {"two_parts"}
    assert "1 annotations are of no image in the file and are not used (annotation 0: found category 90" in caplog.text


# --- two files put together ---


def test_an_image_id_that_stands_twice(coco: Path) -> None:
    size = {"height": HEIGHT, "width": WIDTH}
    images = [{"id": 1, "file_name": "a.jpg", **size}, {"id": "1", "file_name": "b.jpg", **size}]
    edited(coco, images=images, annotations=[{"image_id": 1, "category_id": 1}])
    with pytest.raises(DataError, match=r"image id 1 stands twice, for a\.jpg and b\.jpg; were two files put together"):
        listing(coco)


def test_a_file_that_stands_twice(coco: Path) -> None:
    images = [{"id": number, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH} for number in (1, 2)]
    edited(coco, images=images, annotations=[{"image_id": 1, "category_id": 1}])
    with pytest.raises(DataError, match=r"the file a\.jpg stands twice, with the ids 1 and 2"):
        listing(coco)


@pytest.mark.parametrize("keys", [{"labels_from": "masks"}, {"classes": ["person"]}])
def test_keys_that_do_not_apply(coco: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="do not apply to `coco`"):
        listing(coco, **keys)


def test_a_size_that_no_photograph_may_have_is_a_problem_of_its_image(coco: Path) -> None:
    size = {"id": 1000, "file_name": "two_parts.jpg", "height": 10**6, "width": 10**6}
    edited(coco, images=[size], annotations=[{"image_id": 1000, **annotation(1, [box(0, 0, 2, 2)])}])
    (found,) = listing(coco).items
    assert "1000000 x 1000000 pixels in the JSON" in found.problems[0]
    assert found.mask is None


def test_a_name_that_leads_out_is_a_problem_of_its_image(coco: Path) -> None:
    image = {"id": 999, "file_name": "../overlap.jpg", "height": HEIGHT, "width": WIDTH}
    edited(coco, images=[image], annotations=[{"image_id": 999, **annotation(1, [box(0, 0, 2, 2)])}])
    (found,) = listing(coco).items
    assert "leads out" in found.problems[0]


def test_what_is_no_json_is_one_message(coco: Path) -> None:
    (coco / "annotations/instances_train2014.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"train2014\.json: not JSON"):
        listing(coco)


@pytest.mark.parametrize(
    ("split", "all_images", "kept", "official"),
    [("train", 82_783, 82_081, 82_081), ("train", 82_783, 82_080, 82_081), ("val", 40_504, 40_137, 40_137)],
)
def test_the_official_lists(
    tmp_path: Path,
    split: str,
    all_images: int,
    kept: int,
    official: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As many images as the official JSON has, of which `kept` have an annotation: the others are left out."""
    caplog.set_level(logging.INFO, "distwsss")
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 2, "width": 2} for n in range(all_images)]
    some = [{"image_id": n, "category_id": 1, "segmentation": []} for n in range(kept)]
    (tmp_path / "annotations").mkdir()
    path = tmp_path / f"annotations/instances_{split}2014.json"
    path.write_text(json.dumps({"images": images, "annotations": some, "categories": CATEGORIES}))
    if kept == official:
        assert {item.name for item in listing(tmp_path, split).items} == {f"{n}.jpg" for n in range(kept)}
        assert f"{kept} of {all_images} images have an annotation; the others" in caplog.text
    else:
        with pytest.raises(DataError, match=f"{kept} of {all_images} images have an annotation, officially {official}"):
            listing(tmp_path, split)


def test_regions_with_another_picture_size_are_no_mask() -> None:
    with pytest.raises(DataError, match="found RLE of size"):
        CocoMask(3, 3, (Region(1, False, rle(ring())),)).draw()
