"""Text tables line up, and numbers have the digits that matter."""

from embedcache.text import NONE, most_like, nearest, number, text_table


def test_numbers_have_the_digits_that_matter() -> None:
    values = (None, 0.01634, 0.9078, 1.0019, 12.346, -4.5, 12345.6, 12345, 0, 0.0, -4.7e-7)
    expected = [NONE, "0.0163", "0.908", "1.002", "12.35", "-4.500", "12,345.6", "12,345", "0"]
    expected += ["0.0000", "-4.70e-07"]
    assert [number(value) for value in values] == expected
    assert number(None, none="") == ""


def test_every_column_of_a_table_ends_or_begins_where_its_head_does() -> None:
    rows = [("target", "metric", "value"), ("a", "mae", "1.25"), ("a_long_name", "r2", "")]
    assert text_table(rows, num_left=2) == [
        "target       metric  value",
        "a            mae      1.25",
        "a_long_name  r2",
    ]


def test_a_slip_and_a_beginning_are_taken_for_a_name_and_nothing_far_is() -> None:
    known = ["train", "validation", "test"]
    meant = {"Train ": "train", "trian": "train", "val": "validation", "Valid": "validation"}
    assert {word: most_like(word, known) for word in meant} == meant
    for far in ("holdout", "dev", "v", "", "0"):
        assert most_like(far, known) is None
        assert nearest(far, known) == ""
    assert nearest("tset", known) == "; did you mean 'test'?"
