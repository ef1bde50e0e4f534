"""Tests of the search for copies, leaks and outliers."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from sft_jax.inspect.copies import Pair, clusters, contradictions, copies, pairs, shared_groups
from sft_jax.inspect.looks import hashes, look
from sft_jax.inspect.neighbours import NEAREST, neighbours, outliers


def drawing(seed, side=64):
    """Returns a smooth picture of a few random waves."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def bits(one, other):
    return np.bitwise_count(hashes(one)[0] ^ hashes(other))


def test_hashes_are_those_of_imagehash():
    find = pytest.importorskip("imagehash", reason="needs imagehash").phash
    for seed in range(20):
        image = drawing(seed)
        for one, own in ((image, 0), (image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 1)):
            assert int(str(find(one)), 16) == int(hashes(image)[own])


@pytest.mark.parametrize("seed", range(5))
def test_hashes_tell_copies_from_other_pictures(seed):
    image = drawing(seed)
    assert bits(image, image.resize((40, 40)))[0] <= 4
    assert bits(image, ImageEnhance.Brightness(image).enhance(0.8))[0] <= 4
    assert bits(image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))[1] == 0
    assert bits(image, drawing(seed + 100)).min() > 10


def features_of(groups):
    """Returns features [n, 8] of which those of one group are nearly the same."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((max(groups) + 1, 8))
    return (centres[groups] + 0.01 * generator.standard_normal((len(groups), 8))).astype(np.float32)


def test_pairs_take_the_same_pixels_or_both_features_and_hash():
    image = drawing(0)
    looks = [look(each) for each in (image, drawing(1), image, image.resize((48, 48)), drawing(2))]
    # The features of the last one are those of the first, but it looks otherwise.
    found = pairs(looks, neighbours(features_of([0, 1, 0, 0, 0])))
    assert {(pair.one, pair.other, pair.exact) for pair in found} == {(0, 2, True), (0, 3, False), (2, 3, False)}
    # Its pixels are nearly the same, but its features are others.
    found = pairs(looks, neighbours(features_of([0, 1, 0, 2, 3])))
    assert {(pair.one, pair.other, pair.exact) for pair in found} == {(0, 2, True)}


def test_blank_pictures_are_not_nearly_the_same():
    looks = [look(Image.new("RGB", (20, 20), (shade,) * 3)) for shade in (10, 20)]
    assert pairs(looks, neighbours(features_of([0, 0]))) == []


def found(finding):
    return finding.row, finding.issue, finding.against


def test_of_copies_the_one_of_the_test_split_is_kept():
    pair = Pair(0, 1, 1.0, True), Pair(0, 2, 1.0, True), Pair(3, 4, 1.0, True), Pair(5, 6, 0.9, False)
    parts = ["train", "test", "train", "train", "train", "val", "val"]
    findings = copies(pair, clusters(7, pair), parts)
    assert {found(each) for each in findings} == {
        (0, "leak", 1),
        (2, "leak", 1),
        (4, "duplicate", 3),
        (6, "near_duplicate", 5),
    }
    assert {each.row: each.score for each in findings} == {0: 1.0, 2: 1.0, 4: 1.0, 6: 0.9}


def test_copies_without_splits_are_no_leaks():
    pair = (Pair(0, 1, 1.0, True),)
    assert [found(each) for each in copies(pair, clusters(2, pair), [None, None])] == [(1, "duplicate", 0)]


def test_the_validation_picture_goes_if_the_other_is_of_the_test_split():
    pair = (Pair(0, 1, 0.9, False),)
    assert [found(each) for each in copies(pair, clusters(2, pair), ["val", "test"])] == [(0, "leak", 1)]


def test_only_one_of_a_chain_of_near_copies_is_kept():
    pair = Pair(0, 2, 0.9, False), Pair(1, 2, 0.95, False)
    findings = copies(pair, clusters(3, pair), [None] * 3)
    assert [found(each) for each in findings] == [(1, "near_duplicate", 0), (2, "near_duplicate", 1)]


def test_groups_in_two_splits_are_leaks():
    findings = shared_groups(["p", "p", "q", "q", None, None], ["train", "test", "train", "train", "train", "test"])
    assert [found(each) for each in findings] == [(0, "leak", 1)]


def test_the_same_pixels_under_two_labels_contradict_each_other():
    pair = Pair(0, 1, 1.0, True), Pair(0, 2, 1.0, True), Pair(3, 4, 0.9, False)
    findings = contradictions(pair, np.array([0, 1, 0, 0, 1]), ("a", "b"))
    assert {(each.row, each.other, each.against) for each in findings} == {(0, "b", 1), (1, "a", 0)}


def test_neighbours_are_the_nearest_by_angle():
    features = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    distances = np.linalg.norm(unit[:, None] - unit, axis=-1)
    np.fill_diagonal(distances, np.inf)
    near = neighbours(features)
    np.testing.assert_array_equal(near.rows, np.argsort(distances, 1)[:, :NEAREST])
    np.testing.assert_allclose(near.distances, np.sort(distances, 1)[:, :NEAREST], atol=1e-5)


def test_a_picture_is_not_its_own_neighbour_even_with_many_copies():
    near = neighbours(np.ones((30, 4), np.float32))
    assert near.rows.shape == (30, NEAREST)
    assert (near.rows != np.arange(30)[:, None]).all()
    # float32 rounds the distance of the same features to a little more than 0.
    assert near.distances.max() < 1e-3


def test_a_lonely_picture_is_an_outlier():
    features = features_of([0] * 30 + [1] * 30 + [2])
    assert [each.row for each in outliers(neighbours(features), [])] == [60]


def test_outliers_of_few_pictures_are_not_looked_for():
    assert outliers(neighbours(features_of([0] * 5)), notices := []) == []
    assert notices == [f"outliers not looked for: they need more than {NEAREST} images"]
