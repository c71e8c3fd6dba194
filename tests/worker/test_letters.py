"""Texts in any encoding become texts that JSON can hold, and are not taken for another script."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoprocessing_worker.tiff.letters import ARABIC, LATIN, UNKNOWN, UTF_8, clean, decode


@pytest.mark.parametrize(
    ("text", "codec", "encoding"),
    [
        ("elevation", "ascii", None),
        ("Höhe über NN, m²", "utf-8", None),
        ("ارتفاع", "utf-8", None),
        ("Höhe", "latin-1", LATIN),
        ("Température (°C)", "latin-1", LATIN),
        ("m²", "latin-1", LATIN),
        ("µm", "latin-1", LATIN),
        ("Ångström", "latin-1", LATIN),
        ("Straße: Größe €", "cp1252", LATIN),
        ("ÉLÉVATION", "latin-1", LATIN),
        ("الارتفاع", "cp1256", ARABIC),
        ("درجة الحرارة °C", "cp1256", ARABIC),
        ("صنعاء", "cp1256", ARABIC),
        ("ارتفاع (m)", "cp1256", ARABIC),
        ("پارچه", "cp1256", ARABIC),
    ],
)
def test_texts_of_common_encodings_are_read(text: str, codec: str, encoding: str | None) -> None:
    """UTF-8, Latin-1, Windows-1252 and Windows-1256 come out as they were written."""
    assert decode(text.encode(codec)) == (text, encoding)


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("標高データ", "shift_jis"),
        ("高程数据", "gbk"),
        ("высота над морем", "cp1251"),
        ("Высота", "koi8-r"),
        ("υψόμετρο", "cp1253"),
        ("גובה", "cp1255"),
        ("고도", "euc-kr"),
    ],
)
def test_texts_of_other_encodings_are_replaced_and_not_guessed(text: str, codec: str) -> None:
    """U+FFFD is honest where letters of Western Europe or of Arabic would be wrong."""
    decoded = decode(text.encode(codec))
    assert decoded.encoding == UNKNOWN
    assert "\ufffd" in decoded.text
    assert all(letter.isascii() or letter == "\ufffd" for letter in decoded.text)


def test_utf_8_that_is_cut_in_a_letter_stays_utf_8() -> None:
    """Fields of a fixed length end anywhere."""
    assert decode("الارتفاع".encode()[:-1]) == ("الارتفا\ufffd", UTF_8)


@given(st.binary(max_size=40))
def test_any_bytes_become_text_that_json_can_hold(raw: bytes) -> None:
    """No lone surrogate, no control character, no error."""
    text = clean(decode(raw).text)
    assert text.encode().decode() == text
    assert not any(ord(letter) < 32 and letter not in "\t\n\r" for letter in text)
    assert not any(0x7F <= ord(letter) < 0xA0 for letter in text)


@given(st.text(max_size=40))
def test_utf_8_is_never_taken_for_anything_else(text: str) -> None:
    """Whatever the script: strict UTF-8 comes first."""
    raw = text.encode(errors="ignore")
    assert decode(raw) == (raw.decode(), None)
