"""What a captioner is asked: prompts as text files, filled with tags that stay data.

load_prompt("urbancross").fill(["amenity=school"], ["highway=service"])
'Please give a ... and its geographical tags: "amenity of school; surrounded by road of service".'

A prompt file is plain text with the placeholders {tags} and, if wanted apart, {surroundings}; {{ and }} are plain
braces. Below a line `--- without tags ---` may stand the text for a place of which nothing is known.

Tags were typed by strangers, and a prompt is where instructions live. So they are put between double quotes, and
nothing that could close a quotation, open markup or be a special token of a chat model is left in them.
"""

import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ucore.config import did_you_mean
from ucore.errors import ConfigError
from ucore.files import content_hash, typed_path
from ucore.geo import tags_to_text
from ucore.osm import clean_text

PAPER = "urbancross"  # the prompt of the paper (https://arxiv.org/abs/2404.14241)
PLACEHOLDERS = ("tags", "surroundings")
WITHOUT_TAGS = "--- without tags ---"
MOST_TAGS = 20  # of the place, and as many around it
MOST_SIGNS_OF_A_TAG = 60
MOST_BYTES = 20_000  # of a prompt file
MARKS = "().,&+-'/%"  # what tags keep beside letters, digits and spaces


@dataclass(frozen=True)
class Prompt:
    """A text with placeholders, and the one for a place without tags ("": the first, its tags called none)."""

    name: str
    text: str
    untagged: str = ""

    def key(self) -> str:
        """16 hex digits that change with the words."""
        return content_hash("prompt", self.text, self.untagged)

    def fill(self, tags: Sequence[str] = (), surrounding_tags: Sequence[str] = ()) -> str:
        """The prompt for one image with these "key=value" tags.

        {tags} becomes the tags in the paper's words between double quotes: all of them, or those of the place only
        where the prompt has {surroundings} too.
        """
        here, around = (_plain_tags(of) for of in (tags, surrounding_tags))
        if not here and not around and self.untagged:
            return _filled(self.untagged, {})
        apart = "surroundings" in _placeholders(self.text)
        texts = {"tags": tags_to_text(here, () if apart else around), "surroundings": tags_to_text(around)}
        return _filled(self.text, {name: f'"{text}"' if text else "none" for name, text in texts.items()})


def prompt_names() -> list[str]:
    """Names of the prompts that come with ucore."""
    names = (entry.name for entry in (resources.files("ucore") / "assets" / "prompts").iterdir())
    return sorted(name.removesuffix(".txt") for name in names if name.endswith(".txt"))


def load_prompt(name: str = PAPER) -> Prompt:
    """A prompt that comes with ucore, by name, or a file of your own. Raises ConfigError."""
    if name in prompt_names():
        content = (resources.files("ucore") / "assets" / "prompts" / f"{name}.txt").read_text("utf-8")
        return _parse(name, content, name)
    path = typed_path(name, Path.is_file)
    if path is None:
        known = prompt_names()
        raise ConfigError(
            f"There is no prompt {name[:60]!r}{did_you_mean(name, known)}. Choose one of {', '.join(known)}, or give "
            "the path of a text file."
        )
    try:
        with open(path, "rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"Cannot read the prompt {path} ({error.strerror}). Check its permissions.") from error
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        content = "\0"
    if len(data) > MOST_BYTES or "\0" in content:
        raise ConfigError(f"{path} is no prompt: it must be UTF-8 text of at most {MOST_BYTES:,} bytes.")
    return _parse(path.stem, content, str(path))


def plain_text(value: str, most: int) -> str:
    """At most `most` signs of `value` on one line: letters, digits, spaces and ().,&+-'/% only.

    Quotes, brackets other than round ones, bars, colons, line breaks and control characters are gone, also in their
    full-width forms.
    """
    text = unicodedata.normalize("NFKC", clean_text(value))
    kept = (sign if sign.isalnum() or unicodedata.combining(sign) or sign in MARKS else " " for sign in text)
    return " ".join("".join(kept).split())[:most].strip()


def _plain_tags(tags: Sequence[str]) -> list[str]:
    pairs = (tag.partition("=") for tag in tags)
    plain = [(plain_text(key, MOST_SIGNS_OF_A_TAG), plain_text(value, MOST_SIGNS_OF_A_TAG)) for key, _, value in pairs]
    return [f"{key}={value}" for key, value in dict.fromkeys(plain) if key][:MOST_TAGS]


def _parse(name: str, content: str, where: str) -> Prompt:
    text, _, untagged = (part.strip() for part in content.partition(WITHOUT_TAGS))
    if not text:
        raise ConfigError(f"The prompt {where} is empty. Write what the captioner shall do, with {{tags}} in it.")
    for part, allowed in ((text, PLACEHOLDERS), (untagged, ())):
        try:
            found = _placeholders(part)
        except ValueError as error:
            raise ConfigError(
                f"The braces of the prompt {where} do not match ({error}). Write {{{{ and }}}} for plain braces."
            ) from error
        for field in found:
            if field not in allowed:
                known = ", ".join(f"{{{placeholder}}}" for placeholder in allowed) or "no placeholder"
                below = " below the line without tags" if part is untagged else ""
                raise ConfigError(
                    f"The prompt {where} holds {{{field}}}{below}; there can be {known}. "
                    "Write {{ and }} for plain braces."
                )
    return Prompt(name, text, untagged)


def _placeholders(text: str) -> list[str]:
    """What stands in braces, conversions and formats included, so that these are refused as unknown names."""
    fields = ((name, form, turn) for _, name, form, turn in string.Formatter().parse(text) if name is not None)
    return [name + (f"!{turn}" if turn else "") + (f":{form}" if form else "") for name, form, turn in fields]


def _filled(text: str, values: dict[str, str]) -> str:
    parts = string.Formatter().parse(text)
    return "".join(literal + (values[name] if name is not None else "") for literal, name, _, _ in parts)
