"""What can be watched while an adapter adapts: what the curriculum takes, who tells the domains apart, two clouds.

    probe = DomainProbe(adapter)
    adapter.step()
    probe.observe()        # after every step: AdaptationStepper does it, or adapter.fit(on_step=probe.observe)
    probe.told[-1]         # {"step": 1, "image": 71.5, "text": 80.2, ...}, percent
    probe.cycles[-1]       # which source images were offered and taken since this pass through the target began
    probe.clouds()         # a plane's points of both domains' images and texts

None of it has an effect on adaptation, and no pair of the target is used.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from ucore.adversary import balanced_accuracy, fresh_accuracy
from ucore.features import image_tower_features, text_tower_features

if TYPE_CHECKING:
    from ucore.adapt import Adapter

SIDES = ("image", "text")


@dataclass
class Cycle:
    """One pass through the target's images: what of the source was shown meanwhile, one number an image."""

    number: int
    offered: np.ndarray  # int64 (N,), how often the epoch's order gave the image
    taken: np.ndarray  # int64 (N,), how often the curriculum kept it
    weight: np.ndarray  # float64 (N,), sum of its weights in those steps
    steps: int = 0

    @property
    def share(self) -> float:
        """Percent of the offered that was taken."""
        return 100 * float(self.taken.sum() / max(1, self.offered.sum()))


@dataclass(frozen=True)
class Clouds:
    """Points float64 (N, 2) in a plane, of each side ("image", "text") those of the source and those of the target."""

    step: int
    source: dict[str, np.ndarray]
    target: dict[str, np.ndarray]
    reach: float  # the largest coordinate, or a little more


class SmoothPlane:
    """The plane in which features spread most, followed so that points move and do not jump.

    Principal components have no sign and no order of their own. So only the first plane is theirs; each later one is a
    step of orthogonal iteration from the one before, turned to lie nearest to it (the polar factor, which solves the
    orthogonal Procrustes problem: Schönemann 1966). Where features stay, it comes to the principal plane; where another
    direction becomes the widest, it swings there over several calls.
    """

    def __init__(self) -> None:
        self.basis: np.ndarray | None = None  # float64 (D, 2), orthonormal columns

    def __call__(self, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points float64 (N, 2) and (M, 2) of features float (N, D) and (M, D), both domains counting alike."""
        middle = (source.mean(axis=0, dtype=np.float64) + target.mean(axis=0, dtype=np.float64)) / 2
        parts = source - middle, target - middle
        if self.basis is None:
            rows = np.concatenate([part / np.sqrt(len(part)) for part in parts])
            basis = np.linalg.svd(rows, full_matrices=False)[2][:2].T
            self.basis = basis * np.where(basis[np.abs(basis).argmax(axis=0), [0, 1]] < 0, -1, 1)
        else:
            pulled = [part.T @ (part @ self.basis) / len(part) for part in parts]
            left, _, right = np.linalg.svd(pulled[0] + pulled[1], full_matrices=False)
            self.basis = left @ right
        return parts[0] @ self.basis, parts[1] @ self.basis


class DomainProbe:
    """Looks at an adapter between its steps, with the weights as they are, without dropout or other views.

    size: of each domain at most so many images, and texts, evenly spread. Made anew or restarted, it has seen nothing:
    what an adapter did before is not known to it.
    """

    def __init__(self, adapter: "Adapter", size: int = 150) -> None:
        self.adapter, encoder, config = adapter, adapter.encoder, adapter.config
        common: dict[str, Any] = {"cache": adapter.cache, "progress": adapter.progress}
        images = [
            image_tower_features(encoder, part, config.train_views, **common)[:, 0]
            for part in (adapter.train, adapter.finetune)
        ]
        first = adapter.first_text[:-1]  # of every image
        texts = text_tower_features(encoder, adapter.texts, **common)[first], adapter.target_text.numpy()
        self._towers = {
            side: [torch.from_numpy(part[_spread(len(part), size)]) for part in parts]
            for side, parts in zip(SIDES, (images, texts), strict=True)
        }
        everything = np.arange(len(adapter.target_texts))
        self.likeness = adapter.sampler.likeness(first, everything)  # float (N,), of the source's images
        self.restart()

    def restart(self) -> None:
        """Begin anew, from the adapter's present state."""
        adapter = self.adapter
        self._phase: Any = None if adapter.finished else adapter.phase
        self._step = -1
        self._planes = {side: SmoothPlane() for side in SIDES}
        self._reach = 0.0
        self.told: list[dict[str, float]] = []  # of every step, percent; see `_tell`
        self.cycles: list[Cycle] = []
        self.observe()
        self.first = self.clouds()

    def observe(self, _: Any = None) -> None:
        """Look once after a step; a second look at the same step changes nothing."""
        step = self.adapter.step_count
        if step == self._step:
            return
        features = self._features()
        if step > max(self._step, 0) and self._phase is not None and self._phase.taken is not None:
            self._count()
        self._step = step
        self._tell(features)
        self._place(features)

    def clouds(self) -> Clouds:
        """Both domains in the plane, at the last step that was observed."""
        source, target = ({side: points[number] for side, points in self._points.items()} for number in (0, 1))
        return Clouds(self._step, source, target, self._reach)

    def _features(self) -> dict[str, list[torch.Tensor]]:
        """Of each side the features float32 (n, D) of source and target, L2-normalised."""
        encoder = self.adapter.encoder
        heads = {"image": encoder.image_head, "text": encoder.text_head}
        with encoder.evaluating():
            return {
                side: [F.normalize(heads[side](part.to(encoder.device)), dim=1) for part in parts]
                for side, parts in self._towers.items()
            }

    def _count(self) -> None:
        """Enter what the last step's batch was offered and took."""
        taken, size = self._phase.taken, len(self.adapter.train)
        if not self.cycles or self.cycles[-1].number != taken.cycle:
            self.cycles.append(Cycle(taken.cycle, np.zeros(size, int), np.zeros(size, int), np.zeros(size)))
        cycle = self.cycles[-1]
        cycle.offered[taken.offered] += 1
        cycle.taken[taken.rows] += 1
        cycle.weight[taken.rows] += taken.weights
        cycle.steps += 1

    @torch.no_grad()
    def _tell(self, features: dict[str, list[torch.Tensor]]) -> None:
        """Percent told apart: "image" and "text" by the method's discriminators, where it has them and they belong to
        these weights; "fresh_image" and "fresh_text" by new classifiers, at the start and at an epoch's end."""
        adapter, row = self.adapter, {"step": float(self._step)}
        if self._phase is not None and not adapter.finished and adapter.config.adversary != "none":
            for side, parts in features.items():
                self._phase.discriminators.eval()
                row[side] = balanced_accuracy(*(self._phase.logits(side, part) for part in parts))
                self._phase.discriminators.train()
        if not adapter.history or "metrics" in adapter.history[-1] or not self.told:
            for side, parts in features.items():
                source, target = (part.cpu().numpy() for part in parts)
                row[f"fresh_{side}"] = fresh_accuracy(source, target)
        self.told.append(row)

    def _place(self, features: dict[str, list[torch.Tensor]]) -> None:
        self._points = {
            side: self._planes[side](*(part.cpu().numpy() for part in parts)) for side, parts in features.items()
        }
        widest = max(float(np.abs(part).max()) for parts in self._points.values() for part in parts)
        self._reach = max(0.95 * self._reach, 1.05 * widest)  # the frame, too, shrinks slowly


def _spread(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` rows, int64, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))
