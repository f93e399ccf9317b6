"""From what a language model wrote to sentences about the picture (`clean_caption`).

Models echo the question, greet, refuse, fall into loops, stop in the middle of a word and leave the marks of their
own format. Only what is left out is decided here; no word is added but a full stop, so that every sentence of the
result is the model's own.
"""

import html
import re
import unicodedata
from dataclasses import dataclass

MOST_WORDS = 120  # of a description; text encoders read 77 tokens or fewer
MOST_SIGNS = 20_000  # of what is looked at: a caption is far shorter, and a lying endpoint far longer
ECHO = 5  # words in common with the prompt from which on the beginning is an echo
LOOP, PHRASE, LONGEST_LOOP = 3, 4, 12  # times in a row that make a loop; of so many words or more, twice; most words

# By Unicode's categories: what becomes of separators, of control characters and of signs of no width.
SPACES = {"Zs": " ", "Zl": "\n", "Zp": "\n", "Cc": " ", "Cf": "", "Cs": "", "Co": "", "Cn": ""}
UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn"}

THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
SPECIAL = re.compile(
    r"<\|(?:im_start|start_header_id)\|>[ \t]*\w+(?:<\|end_header_id\|>)?|<\|[^|<>\n]{0,60}\|>|</?s>|<0x[0-9A-F]{2}>"
    r"|</?(?:image|img|fake_token_around_image)>|\[/?INST\]|<</?SYS>>|\[(?:PAD|UNK|CLS|SEP|MASK)\]|\ufffd"
    r"|<(?:pad|unk|bos|eos|mask|end_of_utterance|start_of_turn|end_of_turn|row_\w+)>"
)
ROLE = re.compile(
    r"(?:^|\n)[ \t*#]*(user|human|assistant|system|model|question|instruction)[ \t*]*(?::|(?=\n))"
    r"|\b(?-i:(USER|ASSISTANT|HUMAN):)",
    re.IGNORECASE,
)
ANSWERS = {"assistant", "model"}
FENCE = re.compile(r"^[ \t]*(?:```|~~~)\w*[ \t]*$", re.MULTILINE)
TAG = re.compile(r"</?[a-zA-Z][^<>]{0,300}>|<!--.{0,2000}?-->", re.DOTALL)
LINK = re.compile(r"!?\[([^\[\]\n]{0,300})\]\([^()\n]{0,500}\)")
ADDRESS = re.compile(r"\b(?:https?://|www\.)\S+")
LINE_MARK = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|[-*+\u2022][ \t]+|>[ \t]*|\d{1,2}[.)][ \t]+)", re.MULTILINE)
EMPHASIS = re.compile(r"(\*\*\*|\*\*|__|(?<!\w)[*_`](?=\S)|(?<=\S)[*_`](?!\w))")
LABEL = re.compile(r"^(?:(?:short |detailed |image |final )?(?:caption|description|answer|response|output|summary))"
                   r"\s*:\s*", re.IGNORECASE)  # fmt: skip
ABOUT_TEXT = r"(?:description|caption|sentence|summary|answer|response)s?"
LEAD = re.compile(
    r"^(?:\w{1,30} ?\w{0,30}[,!.] {0,9})?(?:here(?:'s| is| are| you)|this is|the following is)\b"
    r"(?=(?:[\s,]+[^\s:,]+){0,4}?[\s,]+\W?(?:descri|caption|sentence|summar|answer|response|text|version|overview|"
    r"paragraph|result|detail|attempt|output|list|analysis|breakdown)|(?: it| go| are| what| how)\b)"
    r"[^:]{0,120}:\s*(?=\w)",
    re.IGNORECASE,
)
GREETING = re.compile(
    r"^(?:(?:sure|certainly|of course|absolutely|okay|ok|alright|got it|understood)(?: thing| then)?|"
    r"great(?: question| choice| idea| job)?|(?:hello|hi)(?: there| everyone)?)"
    r"(?:\s*[,!:;]\s*|\s*[.\u2014]+\s+|\s+-+\s+|\.?$|\s+(?=(?:i|let me)\b|here(?:'s| is| are)\b))",
    re.IGNORECASE,
)
RAW_TAGS = re.compile(r"\b[a-z_:]{2,}=[\w:;-]+")

REFUSAL = re.compile(
    r"\bas an? (?:\w+ ){0,2}(?:ai|language model|assistant)\b|\b(?:i am|i'm) (?:really |very |so )?(?:sorry|afraid)\b"
    r"|^(?:sorry|apologies|unfortunately, i)\b|\bi apologi[sz]e\b"
    r"|\bi (?:cannot|can't|can not|could not|couldn't|am unable|am not able|won't|will not|do not have|don't have)\b"
    r"|\bi(?:'m| am) (?:unable|not able)\b|\bi (?:do not|don't) (?:see|have access)\b"
    r"|\b(?:no|without an) image (?:was|has been|is|were) (?:provided|attached|uploaded|given|available)\b"
    r"|\bplease (?:provide|upload|attach|share|send)\b|\bagainst (?:my|the) (?:guidelines|policy|policies)\b",
    re.IGNORECASE,
)
# "I can see a river" describes; "I can see the image you sent" does not.
SEES = (
    r"(?:\w+ly )?(?:see|observe|spot|notice|identify|make out)\b"
    r"(?! (?:the|this|your) (?:image|picture|photo)(?: you\b|$))"
)
ASKS = (
    r"(?:request|question|prompt|instruct|query|ask|want|provid|gave|give|has|is|need|did|would|may|might|said|specif"
    r"|input)"
)
CHATTER = re.compile(
    r"^thank(?:s| you)\b(?! to (?!the tags?\b))|^here you (?:go|are)$|^how (?:can|may) i\b"
    rf"|^(?:\w{{1,30}} ?\w{{0,30}}[,!. ]{{1,9}})?here(?:'s| is| are)\b(?:\s+\S+){{0,4}}?\s+\W?{ABOUT_TEXT}\b"
    r"|\b(?:let me know|feel free to|would you like|is there anything|if you (?:need|have|would|want))\b"
    r"|\b(?:happy|glad|pleased) to (?:help|describe|assist|provide)\b"
    r"|^(?:i'll|ill (?:be|describe|give|provide|do|try|start)|i'd|let me|i hope|hope (?:this|that|it|you|these))\b"
    rf"|\bthe user(?:'s)?\b(?= {ASKS}|[,;]|$)"
    rf"|^(?:please )?note(?: that|:).{{0,200}}?\b(?:{ABOUT_TEXT}|tags?|information|provided|based on|i|not|may|might)\b"
    rf"|^disclaimer\b|^i (?:will|would|have)\b|^i can\b(?! {SEES})"
    r"|^great (?:job|work|question|choice|picture|photo)\b(?! of\b)"
    r"|^this (?:description|caption) (?:is|was|includes|captures|mentions|covers)\b",
    re.IGNORECASE,
)
END = re.compile(r"[.!?\u3002]['\")\]\u201d\u2019]*$")
SENTENCE_END = re.compile(r"(?<=[.!?])['\")\]\u201d\u2019]*\s+")
SHORTENED = re.compile(r"\b(?:e\.g|i\.e|approx|ca|[Ss]t|[Dd]r|[Mm]rs?|vs|[Ff]ig|[A-Z])\.$")
DANGLING = {
    *("a", "an", "the", "and", "or", "but", "of", "in", "on", "at", "to", "with", "by", "for", "from", "near", "is"),
    *("are", "as", "that", "which", "its", "their", "this", "these", "some", "several", "between", "beside", "into"),
    *("next", "along", "through", "across", "there", "has", "have", "while", "where", "surrounded", "including"),
}


@dataclass(frozen=True)
class Cleaned:
    """text: what is left, one line of whole sentences, or "". problems: names of what was found, in `PROBLEMS`."""

    text: str
    problems: tuple[str, ...]


PROBLEMS = {
    "control characters": "signs that cannot be printed",
    "special tokens": "marks of the model's format, or its thoughts",
    "further turns": "a conversation that the model went on to make up",
    "markup": "Markdown, HTML or addresses",
    "prompt echo": "words of the prompt",
    "raw tags": "tags as they were given, key=value",
    "refusal": "excuses instead of a description",
    "chatter": "words to the asker",
    "repeated sentences": "a sentence said before",
    "repeated words": "the same words three times in a row or more",
    "unfinished": "a last sentence cut off",
    "too long": "more words than wanted",
    "no words": "a sentence without a word",
    "empty": "nothing left",
}


def clean_caption(text: str, prompt: str = "", most_words: int = MOST_WORDS) -> Cleaned:
    """The sentences of `text` that describe the picture, and what else it held.

    prompt: what the model was asked, with its tags; without it no echo is recognised. Sentences are judged one by one:
    a refusal beside a description leaves the description. A single line without a full stop, as small captioners
    write, is a whole sentence unless it ends in a word that cannot end one. English only.
    """
    found: list[str] = []
    text = _without_marks(text[:MOST_SIGNS], found)
    text = _without_echo(text, prompt, found)
    sentences: list[str] = []
    asked = {_plain(sentence) for sentence in split_sentences(prompt)} - {""}
    seen: set[str] = set()
    candidates = split_sentences(text)
    for number, sentence in enumerate(candidates):
        unlabelled, greeted = sentence, 0
        for pattern in (GREETING, LEAD):
            unlabelled, count = pattern.subn("", unlabelled)
            greeted += count
        if greeted:
            _note(found, "chatter")
        if greeted and not unlabelled:
            continue
        unlabelled = LABEL.sub("", unlabelled)
        words, problem = _plain(unlabelled), ""
        if not re.search(r"[^\W\d_]{2}", unlabelled):
            problem = "no words" if unlabelled.strip(" .") else "skip"
        elif words in asked:
            problem = "prompt echo"
        elif len(RAW_TAGS.findall(unlabelled)) > 1 or RAW_TAGS.fullmatch(unlabelled.rstrip(".")):
            problem = "raw tags"
        elif REFUSAL.search(unlabelled):
            problem = "refusal"
        elif CHATTER.search(unlabelled.rstrip(".!")) or (unlabelled.endswith(":") and number + 1 < len(candidates)):
            problem = "chatter"
        elif words in seen:
            problem = "repeated sentences"
        if problem:
            _note(found, problem)
            continue
        seen.add(words)
        sentences.append(_without_loops(unlabelled, found))
    result = _finished(sentences, found)
    result = _shortened(result, most_words, found)
    if not result:
        _note(found, "empty")
    return Cleaned(result, tuple(name for name in PROBLEMS if name in found))


def split_sentences(text: str) -> list[str]:
    """Sentences of `text`, each on one line; a line break ends one. "e.g. 0.5 m" does not."""
    sentences = []
    for line in text.split("\n"):
        parts, start = [], 0
        for match in SENTENCE_END.finditer(line):
            before = line[start : match.end()].strip()
            if not SHORTENED.search(before):
                parts.append(before)
                start = match.end()
        sentences += [" ".join(part.split()) for part in (*parts, line[start:]) if part.strip()]
    return sentences


def _note(found: list[str], problem: str) -> None:
    if problem not in found and problem != "skip":
        found.append(problem)


def _without_marks(text: str, found: list[str]) -> str:
    """Printable text with line breaks, without the marks of models, chats, Markdown and HTML."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    signs = [SPACES.get(unicodedata.category(sign), sign) if sign not in "\n\t" else sign for sign in text]
    if any(unicodedata.category(sign) in UNPRINTABLE and sign not in "\n\t" for sign in text):
        _note(found, "control characters")
    text = "".join(signs)
    for pattern in (THOUGHT, SPECIAL):
        text, count = pattern.subn(" ", text)
        if count:
            _note(found, "special tokens")
    text = _own_turn(text, found)
    unescaped = html.unescape(text) if "&" in text else text
    stripped = ADDRESS.sub("", LINK.sub(r"\1", TAG.sub(" ", FENCE.sub("", unescaped))))
    stripped = EMPHASIS.sub("", LINE_MARK.sub("", stripped))
    if stripped != text:
        _note(found, "markup")
    stripped = stripped.strip()
    quoted = len(stripped) > 1 and (stripped[0], stripped[-1]) in (('"', '"'), ("'", "'"), ("\u201c", "\u201d"))
    return stripped[1:-1].strip() if quoted else stripped


def _own_turn(text: str, found: list[str]) -> str:
    """What the assistant says first, where the text holds turns of a conversation."""
    turns = list(ROLE.finditer(text))
    if not turns:
        return text
    _note(found, "further turns")
    answer = next((turn for turn in turns if (turn[1] or turn[2]).lower() in ANSWERS), None)
    if not text[: turns[0].start()].strip() and answer is None:
        return ""
    start = 0 if text[: turns[0].start()].strip() else answer.end() if answer else 0
    stop = next((turn.start() for turn in turns if turn.start() >= start), len(text))
    return text[start:stop]


def _without_echo(text: str, prompt: str, found: list[str]) -> str:
    """`text` without the prompt in it, and without a beginning that is the prompt's."""
    asked = prompt.split()
    if not asked:
        return text
    whole = re.compile(r"\s+".join(re.escape(word) for word in asked), re.IGNORECASE)
    text, count = whole.subn(" ", text)
    words = [match[0].lower() for match in re.finditer(r"\S+", text)]
    common = 0
    while common < min(len(words), len(asked)) and words[common] == asked[common].lower():
        common += 1
    if common >= ECHO:  # not all of the prompt, or not in its words: to the end of that sentence
        text = "\n".join(split_sentences(text)[1:])
    if count or common >= ECHO:
        _note(found, "prompt echo")
    return text.strip()


def _plain(sentence: str) -> str:
    return " ".join(re.findall(r"\w+", sentence.lower()))


def _without_loops(sentence: str, found: list[str]) -> str:
    """The sentence with words that stand `LOOP` times in a row, or `PHRASE` words twice, standing once."""
    words = sentence.split()
    plain = [_plain(word) for word in words]
    place = 0
    while place < len(words):
        for size in range(1, LONGEST_LOOP + 1):
            unit, times = plain[place : place + size], 1
            while any(unit) and plain[place + times * size : place + (times + 1) * size] == unit:
                times += 1
            if len(unit) == size and times >= (LOOP if size < PHRASE else 2):
                _note(found, "repeated words")
                stop, end = place + times * size, END.search(words[-1])
                # What was cut off within the next round of the loop belongs to it.
                rest = next((n for n in range(size - 1, 0, -1) if plain[stop:] == unit[:n]), 0)
                del words[place + size : stop + rest], plain[place + size : stop + rest]
                if end and place + size == len(words):
                    while len(words) > 1 and _plain(words[-1]) in DANGLING:
                        words.pop()
                    words[-1] = words[-1].rstrip(",;:") + ("" if END.search(words[-1]) else end[0])
                break
        place += 1
    return " ".join(words)


def _finished(sentences: list[str], found: list[str]) -> str:
    """The sentences as one text, without a last one that was cut off."""
    whole = [bool(END.search(sentence)) for sentence in sentences]
    if sentences and not whole[-1]:
        words = sentences[-1].rstrip(" ,;:-\u2014(").split()
        cut = sentences[-1] != " ".join(words)
        while words and words[-1].lower() in DANGLING:
            words.pop()
            cut = True
        after_whole = len(whole) > 1 and whole[-2]  # in a list without full stops the last item may be whole
        if cut or after_whole:
            _note(found, "unfinished")
        sentences = sentences[:-1] + ([" ".join(words)] if words and not after_whole else [])
    return " ".join(sentence if END.search(sentence) else f"{sentence.rstrip(' ,;:')}." for sentence in sentences)


def _shortened(text: str, most: int, found: list[str]) -> str:
    """At most `most` words: whole sentences, or of a single one its clauses."""
    if len(text.split()) <= most:
        return text
    _note(found, "too long")
    kept: list[str] = []
    sentences = split_sentences(text)
    for sentence in sentences:
        if sum(len(one.split()) for one in kept) + len(sentence.split()) > most:
            break
        kept.append(sentence)
    if kept:
        return " ".join(kept)
    start = " ".join(sentences[0].split()[:most])
    clause = max(start.rfind(","), start.rfind(";"))
    start = start[:clause] if clause > len(start) // 3 else start
    words = start.split()
    while words and words[-1].lower().strip(",;") in DANGLING:
        words.pop()
    return " ".join(words).rstrip(" ,;:") + "." if words else ""
