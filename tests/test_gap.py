"""The matrix of sources and targets, against hand calculation, and that a study is kept."""

import numpy as np
import pytest
from makers import make_rsicd
from matplotlib.colors import to_rgb

from ucore.config import TrainConfig
from ucore.data import read_dataset
from ucore.errors import DataError
from ucore.gap import Gap, camera_share, domain_gap
from ucore.manifest import Manifest
from ucore.picture import ink_on
from ucore.transfer_figures import plot_gap


def gap_of(*ranks: list[list[int]]) -> Gap:
    """A gap of four images with one text each: ranks[source][target] for both directions."""
    both = [[(np.array(one), np.array(one)) for one in row] for row in ranks]
    return Gap(["a", "b"], both, [np.arange(4), np.arange(4)])


HOME, HALF, NONE = [1, 1, 1, 1], [1, 1, 99, 99], [99, 99, 99, 99]


def test_losses_are_relative_to_the_targets_own_model():
    gap = gap_of([HOME, HALF], [NONE, HALF])
    assert gap.mean_recall.tolist() == [[100, 50], [0, 50]]
    assert gap.lost.tolist() == [[0, 0], [100, 0]]
    assert gap.mean_lost == 50
    assert gap.chance.tolist() == pytest.approx([100 * (0.25 + 1 + 1) / 3] * 2)


def test_the_cameras_share_is_what_one_camera_does_away_with():
    worst, better = gap_of([HOME, NONE], [NONE, HOME]), gap_of([HOME, HALF], [HALF, HOME])
    assert camera_share(better, worst) == 50


def test_the_matrix_is_drawn_with_all_its_numbers():
    picture = plot_gap(["a", "<b>"], np.array([[12.34, 5], [0, 100]]))
    assert picture.png()[:4] == b"\x89PNG"
    assert "a in <b> 5.0" in picture.alt


def contrast(one, other):
    """WCAG's, of two colours of matplotlib's: by its own words, apart from ours."""
    bright = [sum(weight * (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4)
                  for weight, part in zip((0.2126, 0.7152, 0.0722), to_rgb(colour), strict=True)) + 0.05
              for colour in (one, other)]  # fmt: skip
    return max(bright) / min(bright)


def test_every_number_of_the_matrix_can_be_read_on_its_shade():
    values = np.arange(0, 100, 4.0).reshape(5, 5)
    axes = plot_gap(list("abcde"), values).axes[0]
    shades = axes.images[0].to_rgba(values)
    found = [contrast(text.get_color(), shades[text.get_position()[1], text.get_position()[0], :3])
             for text in axes.texts if text.get_text()[-2:-1] == "."]  # fmt: skip
    assert len(found) == 25 and min(found) >= 4.5
    assert [ink_on(colour) for colour in ("white", "#0072B2", (1.0, 1.0, 0.0))] == ["black", "white", "black"]


@pytest.fixture(scope="module")
def two_domains(tmp_path_factory) -> Manifest:
    manifest = read_dataset(make_rsicd(tmp_path_factory.mktemp("gap") / "set", 24, 8, 12))
    manifest.frame["domain"] = ["a" if number % 2 else "b" for number in range(len(manifest))]
    return manifest


def test_a_study_ranks_every_test_part_and_is_kept(two_domains, tiny_clip_factory, tmp_path, monkeypatch):
    config = TrainConfig.at("tiny", head_epochs=2, head_batch_size=4)
    parts = tiny_clip_factory(), two_domains, config, tmp_path / "gap", tmp_path / "features"
    gap = domain_gap(*parts)
    assert gap.domains == ["a", "b"] and gap.mean_recall.shape == (2, 2)
    assert [len(ranks[0]) for ranks in gap.ranks[0]] == [6, 6]
    monkeypatch.setattr("ucore.gap.Trainer", lambda *_: pytest.fail("trained again"))
    again = domain_gap(*parts)
    assert (again.mean_recall == gap.mean_recall).all()
    for path in (tmp_path / "gap").iterdir():
        path.write_text("{")
    monkeypatch.undo()
    assert (domain_gap(*parts).mean_recall == gap.mean_recall).all()


def test_one_domain_alone_is_refused(two_domains, tiny_clip_factory, tmp_path):
    with pytest.raises(DataError, match="A gap needs two domains"):
        domain_gap(tiny_clip_factory(), two_domains.domain("a"), TrainConfig.at("tiny"), tmp_path)
