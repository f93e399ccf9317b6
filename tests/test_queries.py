"""What a person types: refused where empty, cut where the encoder stops reading."""

import pytest

from ucore.errors import ConfigError
from ucore.queries import checked_query, read_part


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\x00\x1b"])
def test_an_empty_query_is_refused(text):
    with pytest.raises(ConfigError, match="The query is empty"):
        checked_query(text)


def test_a_query_is_one_line():
    assert checked_query("  tennis\n courts\x1b[2J ") == "tennis courts [2J"


def test_what_fits_is_read_and_the_rest_is_counted():
    def fits(text: str) -> bool:
        return len(text.split()) <= 7

    assert read_part("a b c", fits) == ("a b c", 0)
    assert read_part("a b c", fits).note == ""
    words = " ".join(f"w{number}" for number in range(10_000))
    reading = read_part(words, fits)
    assert reading == ("w0 w1 w2 w3 w4 w5 w6", 9993)
    assert "“… w4 w5 w6”, 9,993 words, is cut" in reading.note
    assert read_part("x" * 1000, lambda _: False).text == "x" * 1000  # one word is always left
