"""Distinct strings: spellings of one text share an id, ids do not depend on the order of rows."""

import numpy as np
import pytest

from embedcache.config.columns import StringColumn
from embedcache.table.strings import distinct_strings

PLAIN = StringColumn(name="polymer", column="smiles")


def test_spellings_that_prepare_to_one_text_share_its_id_and_add_up() -> None:
    strings, refused = distinct_strings(
        PLAIN, ["*CC*", "[*]CC[*]", "[*]CCO[*]"], np.array([3, 4, 5])
    )
    assert not refused
    assert strings.text == ("[*]CCO[*]", "[*]CC[*]")
    assert strings.num_rows.tolist() == [5, 7]
    assert strings.id_of_spelling.tolist() == [1, 1, 0]
    assert strings.merged == {"[*]CC[*]": ("*CC*", "[*]CC[*]")}


def test_canonical_form_merges_orders_of_atoms() -> None:
    spellings, rows = ["[*]CCO[*]", "[*]OCC[*]"], np.array([1, 2])
    assert len(distinct_strings(PLAIN, spellings, rows)[0].text) == 2
    canonical = StringColumn(name="polymer", column="smiles", canonicalize=True)
    assert distinct_strings(canonical, spellings, rows)[0].num_rows.tolist() == [3]


@pytest.mark.parametrize("seed", range(3))
def test_ids_do_not_depend_on_the_order_of_spellings(seed: int) -> None:
    spellings = [f"[*]{'C' * k}[*]" for k in range(1, 9)]
    order = np.random.default_rng(seed).permutation(8)
    strings, _ = distinct_strings(PLAIN, [spellings[k] for k in order], order + 1)
    plain, _ = distinct_strings(PLAIN, spellings, np.arange(8) + 1)
    assert strings.text == plain.text
    assert strings.num_rows.tolist() == plain.num_rows.tolist()


def test_refused_strings_come_with_a_reason_and_leave_the_others_alone() -> None:
    strings, refused = distinct_strings(PLAIN, ["[*]CC[*]", "CCO", "C1CC"], np.array([1, 2, 3]))
    assert set(refused) == {"CCO", "C1CC"}
    assert all(refused.values())
    assert strings.spellings == ("[*]CC[*]",)


def test_no_acceptable_string_at_all() -> None:
    strings, refused = distinct_strings(PLAIN, ["CCO"], np.array([2]))
    assert strings.text == ()
    assert list(refused) == ["CCO"]
