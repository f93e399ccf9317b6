"""A study of an adaptation: arms from one start, kept by content; both sides of a border, and what is found beyond."""

from typing import Any

import numpy as np
import pytest
import torch

from ucore.ablations import BASE
from ucore.adapt_ablations import ADAPT_ARMS, AdaptStudy, few_steps, source_only
from ucore.crossing import target_ranks, two_sides
from ucore.data import read_dataset
from ucore.errors import ConfigError, DataError
from ucore.evaluate import retrieval_ranks
from ucore.tasks import score

SHORT: dict[str, Any] = dict(head_epochs=1, head_batch_size=8, target_batch_size=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def new_study(sides, cache, tiny_clip_factory, tmp_path):
    def make(encoder=None, **changes):
        given = {"progress": False, **SHORT, **changes}
        return AdaptStudy(encoder or tiny_clip_factory(), *sides, tmp_path / "runs", cache, **given)

    return make


def test_runs_start_from_the_same_model_and_are_kept(new_study, tiny_clip_factory, tmp_path, monkeypatch):
    rows = new_study().table(["method=source-only", "curriculum=none,adversary=none"], [0])
    assert [row["arm"] for row in rows] == [BASE, "method=source-only", "curriculum=none,adversary=none"]
    assert len(list((tmp_path / "runs").glob("*.json"))) == 3
    monkeypatch.setattr("ucore.adapt_ablations.Adapter", lambda *_: pytest.fail("adapted again"))
    assert new_study().table(["method=source-only"], [0])[1] == rows[1]
    changed = tiny_clip_factory()
    with torch.no_grad():
        changed.image_head.contract.bias.add_(1)
    with pytest.raises(pytest.fail.Exception, match="adapted again"):  # another start is another study
        new_study(changed).run(BASE, 0)


def test_arms_change_the_papers_settings_and_what_cannot_be_run_is_named(new_study):
    study = new_study()
    assert study.config(BASE, 3).curriculum == "cosine" and study.config(BASE, 3).seed == 3
    assert study.config("method=ucore").pseudo_weight == 1 and study.config("method=ucore").adversary == "none"
    assert study.config("domain_weights=false").domain_weights is False
    assert [arm for arm in ADAPT_ARMS if study.lacking(arm)] == ["segments=late"]
    with pytest.raises(ConfigError, match="did you mean 'curriculum'"):
        study.lacking("curiculum=none")
    with pytest.raises(ConfigError, match="there are no segments; leave it out"):
        study.table(["segments=late"], [0])


def test_the_source_only_model_is_a_trained_copy(tiny_rsicd, cache, tiny_clip_factory):
    fresh, home = tiny_clip_factory(), read_dataset(tiny_rsicd)
    before = fresh.image_head.contract.weight.clone()
    models = [source_only(fresh, home, "tiny", 0, cache, head_batch_size=8, head_epochs=1) for _ in range(2)]
    assert torch.equal(fresh.image_head.contract.weight, before)
    assert torch.equal(*(model.image_head.contract.weight for model in models))
    assert few_steps(home.split("train")) == 4


def test_two_sides_are_train_and_val_of_the_one_and_all_of_the_other(tiny_rsicd, sides):
    other = sides[1].root.parent
    home, away = two_sides(tiny_rsicd, target=other)
    assert set(home.frame["split"]) == {"train", "val"} and len(away) == 20
    with pytest.raises(DataError, match="adaptation needs another"):
        two_sides(tiny_rsicd)
    with pytest.raises(DataError, match="atlantis"):
        two_sides(tiny_rsicd, target=other, target_domain="atlantis")


def test_the_target_is_ranked_as_eval_does_it_and_once_more_with_hubs_corrected(sides, cache, tiny_clip_factory):
    encoder, (_, test, finetune) = tiny_clip_factory(), sides
    found = target_ranks(encoder, test, finetune, cache, "plain")
    assert list(found) == ["plain", "plain, hubs corrected"]
    expected = retrieval_ranks(score(encoder, test, progress=False).similarity, test.texts[1])
    assert all(np.array_equal(one, two) for one, two in zip(found["plain"], expected, strict=True))
    assert [len(ranks) for ranks in found["plain, hubs corrected"]] == [len(ranks) for ranks in expected]
