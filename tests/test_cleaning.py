"""What is left of a model's answer, and what the rest is called."""

import pytest

from ucore.cleaning import MOST_WORDS, PROBLEMS, Cleaned, clean_caption, split_sentences

PROMPT = (
    "Please give a comprehensive and detailed description of the satellite image and its geographical tags: "
    '"amenity of school, road of residential".'
)


@pytest.mark.parametrize(
    "text",
    [
        "Houses along a road.",
        "many buildings and green trees are near a road .",
        "It has approx. 20 houses, e.g. villas. St. Mary stands near. A 0.5 m wide path ends there!",
        "A house, a very, very old one, beside a pond (half dry).",
        "A red house, a blue house and a red house beside a red house .",
        "Here a road crosses the river. The description ends not.",
        "Two houses & a <5 m wide road.",
        "I can see a river between green fields.",
        "Great lakes, lawns and several ponds lie around the buildings.",
        "Hi-rise buildings stand along a road.",
        "Note that the river is brown.",
        "Thanks to a wide river the fields are green.",
        "This is a satellite image of a port: ships lie at the quay.",
        "Here is a roof with white text painted on it.",
        "Here are two versions of the same house.",
        "Here you are looking at a port.",
        "Ill-maintained houses stand beside a dirt road.",
        "Hope Street runs past a school.",
        "Great choice of trees.",
        "The user parking area is full of cars.",
        "Here is a large lake with a description board: trees stand around it.",
    ],
)
def test_good_text_stays_as_it_is(text):
    assert clean_caption(text, PROMPT) == Cleaned(text, ())


@pytest.mark.parametrize(
    ("text", "left", "problems"),
    [
        ("a large building with many trees", "a large building with many trees.", ()),
        (f"{PROMPT} Houses stand.", "Houses stand.", ("prompt echo",)),
        (f"{PROMPT.upper()}\nHouses stand.", "Houses stand.", ("prompt echo",)),
        ("Please give a comprehensive and detailed description of it. A school.", "A school.", ("prompt echo",)),
        ("Sure! Here is a detailed description:\n\nA school. Let me know.", "A school.", ("chatter",)),
        ("Sure, here's a caption: A red house.", "A red house.", ("chatter",)),
        ("A school. I'll be glad to say more. Ill describe it. Hope this helps!", "A school.", ("chatter",)),
        ("A school. Great choice! The user asked for tags. That is for the user.", "A school.", ("chatter",)),
        ("Here is my very best short description of it: A school.", "A school.", ("chatter",)),
        ("Sure, the image shows a lake.", "the image shows a lake.", ("chatter",)),
        ("Great question! Of course I can help. Here you go: a lake.", "a lake.", ("chatter",)),
        ("Thanks for asking. A lake. Note that this description is based on the tags.", "A lake.", ("chatter",)),
        ("Okay", "", ("chatter", "empty")),
        *(
            (f"{chatter} A lake.", "A lake.", ("chatter",))
            for chatter in (
                "Sure, I'd be happy to describe this image.",
                "Sure, I'll describe the image for you.",
                "Sure, let me describe the image.",
                "Okay let me take a look at this image.",
                "Of course, I'd be glad to help you with that.",
                "Sure, hope this helps.",
                "Okay, so the user wants a description of this image.",
                "Hello everyone.",
                "Alright then.",
                "Great job on this photo.",
                "Sure - here's a caption:",
                "Here is a detailed overview of the image:",
                "Here is a rewritten paragraph:",
                "Here's my attempt:",
                "Here are the details of the satellite image:",
                "I will identify the main objects in the image.",
                "I can help identify features.",
                "I can see the image you uploaded.",
                "Thanks to the tags I know that it is a school.",
            )
        ),
        ("As an AI language model, I cannot see images. A school stands.", "A school stands.", ("refusal",)),
        ("I'm sorry, but I can't help with that.", "", ("refusal", "empty")),
        ("No image was provided. Please upload it.", "", ("refusal", "empty")),
        ("A road. It is near. it is near . A road!", "A road. It is near.", ("repeated sentences",)),
        ("trees trees trees trees.", "trees.", ("repeated words",)),
        ("a road and a tree and a road and a tree and a road and a tree and a", "a road and a tree.",
         ("repeated words", "unfinished")),
        ("A road, a wide verge with a truck and a wide verge with a truck and a wide verge. Trees.",
         "A road, a wide verge with a truck. Trees.", ("repeated words",)),
        ("trees , trees , trees .", "trees .", ("repeated words",)),
        ("A school stands. The road leads to the", "A school stands.", ("unfinished",)),
        ("a large building and a", "a large building.", ("unfinished",)),
        ("**Caption:** A *red* house.\n- trees\n- <b>roads</b>", "A red house. trees. roads.", ("markup",)),
        ("# Scene\n[A house](http://x.y/z) by a `road`.", "Scene. A house by a road.", ("markup",)),
        ("&lt;img src=x onerror=alert(1)&gt; A house.", "A house.", ("markup",)),
        ("<|im_start|>assistant\nA house.<|im_end|></s><pad>", "A house.", ("special tokens",)),
        ("<think>Is it a house? It is</think>A house.", "A house.", ("special tokens",)),
        ("<think>never ends", "", ("special tokens", "empty")),
        ("USER: what is it? ASSISTANT: A house. USER: and?", "A house.", ("further turns",)),
        ("A house.\nQuestion: how many?\nAnswer: two", "A house.", ("further turns",)),
        ("A\x00 hou\u200bse\u202e.", "A house.", ("control characters",)),
        ("building=yes, highway=residential. A house.", "A house.", ("raw tags",)),
        ("!!!!!!!!!!!!", "", ("no words", "empty")),
        ("", "", ("empty",)),
        (" \n\t ", "", ("empty",)),
        ('"A house."', "A house.", ()),
    ],
)  # fmt: skip
def test_what_is_dropped_has_a_name(text, left, problems):
    cleaned = clean_caption(text, PROMPT)
    assert (cleaned.text, cleaned.problems) == (left, problems)
    assert set(problems) <= set(PROBLEMS)


def test_long_texts_end_with_a_sentence_or_a_clause():
    sentences = [f"House {number} stands alone." for number in range(100)]
    cleaned = clean_caption(" ".join(sentences), most_words=11)
    assert cleaned.text == "House 0 stands alone. House 1 stands alone."
    assert cleaned.problems == ("too long",)
    assert clean_caption("one big house, two small sheds and the old mill.", most_words=6).text == "one big house."


@pytest.mark.parametrize(
    "text", ["a " * 40_000, "<!--" * 10_000, "<think>" * 5_000, "[" * 50_000, "*_`" * 20_000, "a.b " * 20_000]
)
def test_floods_come_to_an_end(text):
    assert len(clean_caption(text, PROMPT).text.split()) <= MOST_WORDS


def test_cleaning_twice_changes_nothing():
    texts = [f"{PROMPT} A house. A house. Sure!", "- a\n- houses\n- and the", "A house.\nUSER: x", "<b>x house"]
    for text in texts:
        once = clean_caption(text, PROMPT).text
        assert clean_caption(once, PROMPT).text == once


def test_sentences():
    assert split_sentences('He said "yes." Then left. No. 5 m wide\nnext line') == [
        'He said "yes."',
        *("Then left.", "No.", "5 m wide", "next line"),
    ]
    assert split_sentences("") == []
