"""Ranks of descriptors: of any unit, standardised, the same however numbers are spread."""

import numpy as np
import pytest

from embedcache.features.chemistry import descriptor_names
from fusionnet.pretrain.ranks import descriptors, standardised_ranks

UNITS = ["[*]CC[*]", "[*]CC([*])c1ccccc1", "[*]=CC=[*]", "[*]N=P([*])(Cl)Cl", "[*]/C=C/C[*]"]


def test_ranks_do_not_depend_on_the_scale_and_are_standardised() -> None:
    values = np.random.default_rng(0).normal(size=(200, 3))
    values[:, 2] = 4.0
    values[:5, 1] = np.nan
    found = standardised_ranks(values)
    assert found.shape == (200, 2)  # the constant one is left out
    assert np.array_equal(found, standardised_ranks(np.exp(values)), equal_nan=True)
    assert np.isnan(found[:5, 1]).all()
    assert np.isfinite(found[:, 0]).all()
    np.testing.assert_allclose(np.nanmean(found, 0), 0, atol=1e-6)
    np.testing.assert_allclose(np.nanmean(found**2, 0), 1, atol=1e-5)
    assert np.array_equal(found[:, 0].argsort(), values[:, 0].argsort())


def test_ties_share_their_mean_rank() -> None:
    found = standardised_ranks(np.array([[1.0], [1.0], [2.0], [3.0]]))
    ranks = np.array([1.5, 1.5, 3.0, 4.0])
    np.testing.assert_allclose(found[:, 0], (ranks - ranks.mean()) / ranks.std(), rtol=1e-6)


def test_a_capped_unit_has_the_descriptors_of_its_molecule() -> None:
    found = descriptors(UNITS, processes=1)
    assert found.shape == (len(UNITS), len(descriptor_names()))
    heavy = found[:, descriptor_names().index("HeavyAtomCount")]
    assert heavy.tolist() == [2, 8, 4, 4, 3]  # ethane, ethylbenzene, butadiene, an imine, propene
    weight = found[:, descriptor_names().index("MolWt")]
    assert weight[:2] == pytest.approx([30.07, 106.17], abs=0.01)


def test_none_of_no_strings() -> None:
    assert descriptors([], processes=1).shape == (0, len(descriptor_names()))
