"""The segment stage: generators by name, every image once, resumable, bad images by name; features of crops."""

import pickle
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
from makers import draw, make_rsicd
from PIL import Image

from ucore import crop_features, segments
from ucore.classical import Felzenszwalb, Slic, contrast, mean_width
from ucore.data import read_dataset
from ucore.errors import ConfigError, DataError, UserError
from ucore.images import Unreadable
from ucore.manifest import subset
from ucore.masks import Segments
from ucore.segment_store import SegmentStore
from ucore.segments import load_generator, segment_dataset, segment_features


class Halves:
    """A stand-in: the left half and the top half of every image that is not of one colour."""

    name, calls, stop_after = "halves:test/1", 0, None

    def key(self) -> str:
        return "0123456789abcdef"

    def generate(self, images):
        Halves.calls += len(images)
        if Halves.stop_after is not None and Halves.calls > Halves.stop_after:
            raise KeyboardInterrupt
        return [self._halves(image) for image in images]

    def _halves(self, image: np.ndarray) -> Segments:
        if (image == image[0, 0]).all():
            return Segments.none((image.shape[0], image.shape[1]))
        masks = np.zeros((2, *image.shape[:2]), bool)
        masks[0, :, : image.shape[1] // 2] = masks[1, : image.shape[0] // 2] = True
        return Segments.from_masks(masks, np.array([0.9, 0.5]), points=np.array([[1, 2], [3, np.nan]]))


@pytest.fixture
def halves(monkeypatch):
    Halves.calls, Halves.stop_after = 0, None
    monkeypatch.setattr(segments, "load_generator", lambda *_: Halves())
    return Halves


@pytest.fixture
def manifest(tiny_rsicd, tmp_path):
    """24 images that were spoiled after reading: one is cut short, one is of one colour, two are equal."""
    copy = tmp_path / "data"
    shutil.copytree(tiny_rsicd, copy)
    found = read_dataset(copy, split="train")
    damaged, plain, one, other = found.image_paths[1:5]
    damaged.write_bytes(damaged.read_bytes()[:300])
    Image.new("L", (40, 30), 99).save(plain)
    shutil.copyfile(one, other)
    return found


def run(manifest, out, **settings):
    return segment_dataset(manifest, "halves", out, progress=False, **{"workers": 1, **settings})


# --- generators -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("generator", "least"), [(Felzenszwalb(), 0.8), (Slic(), 0.2)], ids=["felzenszwalb", "slic"])
def test_classical_generators_find_a_square_and_nothing_in_one_colour(generator, least):
    image = np.full((64, 96, 3), (60, 120, 50), np.uint8)
    square = np.zeros((64, 96), bool)
    square[20:44, 30:54] = True
    image[square] = (220, 40, 40)
    grey = np.full((50, 30, 3), 128, np.uint8)
    found, none = generator.generate([image, grey])
    assert found.size == (64, 96) and len(none) == 0 and none.size == (50, 30)
    assert found.iou(Segments.from_masks(square[None])).max() > least
    assert (found.predicted_iou > 0).all() and (found.predicted_iou < 1).all()
    again = generator.generate([image])[0]
    assert again.rles == found.rles
    assert generator.key() == type(generator)().key() != type(generator)(smallest=0.01).key()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1, 30), (2, 40), (33, 7)])
def test_classical_generators_take_any_size(size):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    for generator in (Felzenszwalb(), Slic()):
        (found,) = generator.generate([image])
        assert found.size == size and (found.areas <= 0.7 * image[..., 0].size).all()


def test_a_large_image_is_segmented_smaller_and_its_masks_have_its_size(monkeypatch):
    monkeypatch.setattr("ucore.classical.LONGEST", 250)
    image = np.full((500, 300, 3), 50, np.uint8)
    image[100:300, 60:200] = (200, 180, 40)
    found = Felzenszwalb().generate([image])[0]
    target = np.zeros((1, 500, 300), bool)
    target[0, 100:300, 60:200] = True
    assert found.size == (500, 300) and found.iou(Segments.from_masks(target)).max() > 0.85


def test_commands_see_small_things_in_a_large_image():
    image = np.full((3000, 600, 3), 50, np.uint8)
    corners = [(row, column) for row in range(40, 2900, 400) for column in (50, 400)]
    for row, column in corners:  # a shed of 40 pixels: 14 in a picture of 1,024, a hundredth of the area left out there
        image[row : row + 40, column : column + 40] = (200, 180, 40)
    sheds = np.zeros((len(corners), 3000, 600), bool)
    for shed, (row, column) in zip(sheds, corners, strict=True):
        shed[row : row + 40, column : column + 40] = True
    (found,) = load_generator("felzenszwalb").generate([image])
    assert found.size == (3000, 600)
    assert (Segments.from_masks(sheds).iou(found).max(axis=1) > 0.9).all()
    assert not len(Felzenszwalb().generate([image])[0])


def test_contrast_and_width_by_hand():
    labels = np.array([[0, 0, 1], [0, 0, 2]])
    values = np.array([[0, 0, 6], [0, 0, 2]], float)[..., None]
    # 0 touches 1 and 2 once each; 1 touches 0 (6) and 2 (4); 2 touches 0 (2) and 1 (4).
    assert contrast(labels, values, 1).tolist() == [4, 5, 3]
    assert contrast(labels, values, 2).tolist() == [4, 6, 2]  # two pixels apart: only 0 with 1 and 0 with 2
    assert mean_width(labels).tolist() == [4, 1, 1]
    blurred = np.array([[0] * 9 + [1] + [2] * 9] * 9)  # a strip between two things
    values = np.array([[0] * 9 + [5] + [10] * 9] * 9, float)[..., None]
    assert contrast(blurred, values, 2).round(2).tolist() == [7.5, 5, 7.5]
    assert mean_width(blurred).tolist() == [18, 1, 18]


@pytest.mark.parametrize(
    ("spec", "exact", "message"),
    [
        ("felzenswalb", False, r"'felzenswalb'; did you mean 'felzenszwalb'\?"),
        ("slic:file", False, "takes no checkpoint"),
        ("slic", True, "--exact is about Segment Anything"),
        ("", False, "Choose sam-micro, vit_h:CHECKPOINT"),
    ],
)
def test_unknown_generators_are_refused(spec, exact, message):
    with pytest.raises(ConfigError, match=message):
        load_generator(spec, exact)


# --- the stage --------------------------------------------------------------------------------------------------


def test_every_image_once_and_bad_ones_by_name(manifest, tmp_path, halves):
    with pytest.warns(UserWarning, match=r"1 image\(s\) cannot be read .*00001.*truncated"):
        store = run(manifest, tmp_path / "out")
    ids = list(manifest.frame["sample_id"])
    assert halves.calls == 24 - 2  # one is damaged, two are equal
    assert len(store) == 23 and store.sample_ids == ids
    assert [name for name, _ in store] == [name for name in ids if name != ids[1]]
    assert ids[1] not in store and list(store.quarantined()) == [ids[1]]
    with pytest.raises(DataError, match=r"cannot be used \(truncated or damaged\)"):
        store.load(ids[1])
    with pytest.raises(DataError, match="no segments of 'nobody'"):
        store.load("nobody")
    expected, loaded = Halves()._halves(np.random.default_rng(0).random((64, 64, 3))), store.load(ids[0])
    assert loaded.rles == expected.rles and loaded.size == (64, 64)
    for name in ("predicted_iou", "stability", "points"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(expected, name))
    assert len(store.load(ids[2])) == 0 and store.load(ids[2]).size == (30, 40)
    summary = store.summary()
    assert (summary["images"], summary["masks"], summary["images_without_masks"]) == (23, 44, 1)
    assert summary["distinct_images"] == 22 and summary["covered"] == pytest.approx(0.75 * 22 / 23, abs=1e-4)
    assert store.folder.parent == tmp_path / "out" and store.folder.name.startswith("halves-test-1-")
    assert {"settings.json", "summary.json", "samples.parquet"} <= {path.name for path in store.folder.iterdir()}


def test_a_second_call_computes_what_is_new_or_changed(manifest, tmp_path, halves):
    with pytest.warns(UserWarning, match="00001"):
        run(manifest, tmp_path / "out")
    before, halves.calls = len(SegmentStore(next((tmp_path / "out").iterdir()))), 0
    draw({"ground": "green", "colour": "red", "shape": "round", "place": "left"}, 20, np.random.default_rng(0)).save(
        manifest.image_path(1)
    )
    store = run(manifest, tmp_path / "out")  # nothing to warn of any more
    assert halves.calls == 1 and len(store) == before + 1 and store.quarantined() == {}
    val = read_dataset(tmp_path / "data", split="val")
    more = run(val, tmp_path / "out")
    assert halves.calls == 9 and len(more) == 24 + 8
    names = ("samples", "images", "masks")
    assert [more.summary()[name] for name in names] == [32, 32, more.summary()["masks"]]
    of_val = more.summary([*val.frame["sample_id"], "nobody"])  # what was done before is not counted
    assert of_val["samples"] == of_val["images"] == 8
    assert of_val["masks"] == sum(len(more.load(name)) for name in val.frame["sample_id"])
    assert more.sample_ids[:24] == store.sample_ids


def test_stopping_keeps_what_was_done(manifest, tmp_path, halves):
    halves.stop_after = 10
    with pytest.raises(KeyboardInterrupt):
        run(manifest, tmp_path / "stopped", batch_size=2)
    kept = SegmentStore(next((tmp_path / "stopped").iterdir()))
    assert 8 <= len(kept) <= 11  # the two equal ones count twice
    halves.calls, halves.stop_after = 0, None
    with pytest.warns(UserWarning, match="00001"):
        resumed = run(manifest, tmp_path / "stopped")
    with pytest.warns(UserWarning, match="00001"):
        whole = run(manifest, tmp_path / "whole")
    columns = ["key", "rles", "predicted_iou", "stability", "count", "covered"]
    assert resumed.parts.table(columns).equals(whole.parts.table(columns))


def test_gpus_of_the_cluster_alone_are_asked_for(manifest, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(segments, "map_stage", lambda *arguments: asked.append(arguments) or iter(()))
    segment_dataset(subset(manifest, 2), "sam-micro", tmp_path / "out", engine="ray", device="cuda")
    make, gpus = asked[0][0], asked[0][5]
    assert gpus == 1.0
    sent = pickle.loads(pickle.dumps(make))
    assert (sent.device, sent.away, sent.loaded) == ("cuda", False, None)
    like_a_gpu = load_generator("sam-micro", device="cpu", like_gpu=True)
    assert make.key == like_a_gpu.key() != load_generator("sam-micro", device="cpu", like_gpu=False).key()
    with pytest.raises(ConfigError, match="--device cuda was asked for"):
        segment_dataset(manifest, "sam-micro", tmp_path / "out", device="cuda")


def test_images_out_of_reach_fail_and_are_tried_again(manifest, tmp_path, halves, monkeypatch):
    absent, read = manifest.image_path(0), segments.try_image
    gone = Unreadable("absent", lasting=False)
    monkeypatch.setattr(segments, "try_image", lambda path: gone if path == str(absent) else read(path))
    with pytest.warns(UserWarning, match="00001"), pytest.warns(UserWarning, match=r"00000 .absent.*"):
        store = run(manifest, tmp_path / "out")
    assert list(store.quarantined()) == ["00001"] and "00000" not in store
    monkeypatch.setattr(segments, "try_image", read)
    with pytest.warns(UserWarning, match="00001"):
        assert "00000" in run(manifest, tmp_path / "out")


def test_nothing_but_failures_is_an_error(manifest, tmp_path, halves, monkeypatch):
    def fails(*_: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(Halves, "generate", fails)
    with pytest.warns(UserWarning, match="failed"), pytest.raises(UserError, match=r"All 2 images failed.*broken"):
        run(subset(manifest, 2), tmp_path / "out")


def test_a_worker_that_would_make_other_masks_is_refused(manifest, tmp_path, monkeypatch):
    make = segments._MakeWorker("felzenszwalb", False, "cpu", key=load_generator("felzenszwalb").key())
    make()
    make.key = "of another checkpoint"
    with pytest.raises(ConfigError, match="would be others than those of this command"):
        make()


def test_what_fails_is_tried_again_and_not_quarantined(manifest, tmp_path, halves, monkeypatch):
    whole = Halves._halves

    def fails(self, image):
        if image.shape[0] == 30:
            raise RuntimeError("out of memory")
        return whole(self, image)

    monkeypatch.setattr(Halves, "_halves", fails)
    with pytest.warns(UserWarning, match=r"1 image\(s\) failed; repeat .* 00002 .*out of memory"):
        store = run(manifest, tmp_path / "out")
    assert len(store) == 22 and len(store.quarantined()) == 1
    monkeypatch.setattr(Halves, "_halves", whole)
    with pytest.warns(UserWarning, match="00001"):
        assert len(run(manifest, tmp_path / "out")) == 23


def test_large_images_go_one_by_one(manifest, tmp_path, halves, monkeypatch):
    monkeypatch.setattr(segments, "PIXELS_AT_ONCE", 64 * 64)
    sizes = []
    generate = Halves.generate
    monkeypatch.setattr(Halves, "generate", lambda self, some: sizes.append(len(some)) or generate(self, some))
    with pytest.warns(UserWarning, match="00001"):
        run(manifest, tmp_path / "out")
    assert max(sizes) == 1 and sum(sizes) == 22


def test_two_processes_store_what_one_does(tiny_rsicd, tmp_path):
    manifest = read_dataset(tiny_rsicd, split="val")
    one, two = (
        segment_dataset(manifest, "felzenszwalb", tmp_path / str(n), workers=n, batch_size=2, progress=False)
        for n in (1, 2)
    )
    columns = ["key", "rles", "predicted_iou", "stability", "count"]
    assert one.folder.name == two.folder.name
    assert one.parts.table(columns).equals(two.parts.table(columns)) and len(one) == 8


# --- features of crops ------------------------------------------------------------------------------------------


class Means:
    """A stand-in for an encoder: the mean colour of a crop, in three numbers."""

    image_size, image_width, weights, device = (16, 16), 3, "a", "cpu"

    def __init__(self):
        self.batches = []

    def fingerprint(self, part):
        return self.weights

    def evaluating(self):
        return nullcontext()

    def segment_tower(self, images):
        self.batches.append(len(images))
        return images.float().mean((2, 3))


def test_features_of_the_best_crops_with_padding_that_is_counted(manifest, tmp_path, halves, monkeypatch):
    with pytest.warns(UserWarning, match="00001"):
        store = run(manifest, tmp_path / "out")
    encoder = Means()
    features, counts = segment_features(encoder, manifest, store, k=3, background="box", margin=0.0, progress=False)
    assert features.shape == (24, 3, 3) and features.dtype == np.float16
    assert counts.tolist() == [2, 0, 0] + [2] * 21  # damaged: 0; of one colour: 0; two halves otherwise
    assert (features[:, 2] == 0).all() and (features[1:3] == 0).all() and (features[3] == features[4]).all()
    pixels = np.asarray(Image.open(manifest.image_path(0)), float)
    # Halves, best quality first, each in a square moved into the image: the whole image.
    np.testing.assert_allclose(features[0, 0], pixels.mean((0, 1)), rtol=0.02)
    assert set(encoder.batches) == {crop_features.BATCH}  # all of one shape
    again = Means()
    same, _ = segment_features(again, manifest, store, k=3, background="box", margin=0.0, progress=False)
    np.testing.assert_array_equal(same, features)
    assert again.batches == []  # read, not computed
    white, _ = segment_features(again, manifest, store, k=3, margin=0.0, progress=False)
    assert again.batches and not np.array_equal(white, features)


def test_features_resume_and_follow_the_weights(manifest, tmp_path, halves, monkeypatch):
    monkeypatch.setattr(crop_features, "GROUP", 4)
    with pytest.warns(UserWarning, match="00001"):
        store = run(manifest, tmp_path / "out")
    whole, _ = segment_features(Means(), manifest, store, k=2, diversity=0.2, progress=False)
    stops = Means()

    def stop_at_the_fourth(images):
        if len(stops.batches) == 3:
            raise KeyboardInterrupt
        return Means.segment_tower(stops, images)

    stops.segment_tower = stop_at_the_fourth
    with pytest.raises(KeyboardInterrupt):
        segment_features(stops, manifest, store, k=2, progress=False)
    rest = Means()
    segment_features(rest, manifest, store, k=2, progress=False)
    assert 0 < len(rest.batches) < 6 and len(stops.batches) == 3
    other = Means()
    other.weights = "b"
    np.testing.assert_array_equal(segment_features(other, manifest, store, k=2, progress=False)[0], whole)
    assert len(other.batches) == 6


def test_features_without_segments_say_what_to_run(tiny_rsicd, tmp_path, halves):
    store = run(read_dataset(tiny_rsicd, split="val"), tmp_path / "out")
    with pytest.raises(DataError, match="Run ucore segment"):
        segment_features(Means(), read_dataset(tiny_rsicd, split="train"), store, progress=False)
    with pytest.raises(ConfigError, match="background"):
        segment_features(Means(), read_dataset(tiny_rsicd, split="val"), store, background="sky")


@pytest.mark.parametrize("size", [(10, 10), (64, 64)])  # the second is what it had
def test_an_image_that_was_replaced_is_noticed(manifest, tmp_path, halves, size):
    with pytest.warns(UserWarning, match="00001"):
        store = run(manifest, tmp_path / "out")
    segment_features(Means(), manifest, store, background="box", progress=False)
    Image.effect_noise(size, 50).save(manifest.image_path(0))
    with pytest.raises(DataError, match="Changed since they were segmented: "):
        segment_features(Means(), manifest, store, background="box", progress=False)  # though these are there
    with pytest.raises(DataError, match="Changed since they were segmented: "):
        segment_features(Means(), manifest, store, progress=False)


def test_pictures_of_another_dataset_with_the_same_names_are_not_taken_for_ones_own(tmp_path, halves):
    ours, theirs = (read_dataset(make_rsicd(tmp_path / name, 4, 0, 0, seed=seed)) for seed, name in enumerate("ab"))
    assert ours.frame["sample_id"].tolist() == theirs.frame["sample_id"].tolist()
    store = run(ours, tmp_path / "out")
    features, _ = segment_features(Means(), ours, store, progress=False)
    store = run(theirs, tmp_path / "out")
    assert not np.array_equal(segment_features(Means(), theirs, store, progress=False)[0], features)
    with pytest.raises(DataError, match="two datasets have the same names, into a folder for each"):
        segment_features(Means(), ours, store, progress=False)


def test_a_large_model_is_not_loaded_by_every_processor_of_a_cluster(tiny_rsicd, tmp_path):
    manifest = read_dataset(tiny_rsicd, split="val")
    with pytest.raises(ConfigError, match=r"holds vit_b in memory: say with --workers"):
        segment_dataset(manifest, "vit_b:nowhere.pth", tmp_path, engine="ray", device="cpu")
