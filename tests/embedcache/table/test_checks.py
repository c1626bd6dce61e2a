"""What a cell that is no number suggests is what a person would see in it."""

import pytest

from embedcache.table.checks import advice_on_classes, advice_on_text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NA", "data.null_values"),
        ("\N{MINUS SIGN}0.5", "U+2212"),
        ("\N{EN DASH}3", "U+2013"),
        ("2-Jan", "date"),
        ("Sep-02", "date"),
        ("2025-01-02 00:00:00", "date"),
        ("1.2.2025", "date"),
        ("0,5", "set data.csv.decimal: ','"),
        ("727,242", "data.csv.decimal: ','; if it sets thousands apart"),
        ("2,115.88", "take out what sets thousands apart"),
        ("1 234 567", "take out what sets thousands apart"),
        ("1,234,567", "take out what sets thousands apart"),
        ("<5", "a bound is no value"),
        ("< 1 nM", "a bound is no value"),
        ("\N{GREATER-THAN OR EQUAL TO} 10", "a bound is no value"),
        ("12 kPa", "its unit in `unit`"),
        ("~5", "its unit in `unit`"),
        ("5 \N{PLUS-MINUS SIGN} 1", "its unit in `unit`"),
    ],
)
def test_each_kind_has_its_advice(text: str, words: str) -> None:
    advice = advice_on_text([text])
    assert words in advice
    kinds = ("null_values", "U+", "date", "decimal", "take out", "bound", "`unit`")
    assert sum(kind in advice for kind in kinds) == 1


@pytest.mark.parametrize("text", ["x", "[*]CC[*]", "'-0.02", "P00", ""])
def test_of_other_texts_nothing_is_said(text: str) -> None:
    assert advice_on_text([text]) == ""


def test_classes_in_words_are_told_what_to_be() -> None:
    assert "`classes`" in advice_on_classes(["female", "male"])
    assert "data.null_values" in advice_on_classes(["NA"])
