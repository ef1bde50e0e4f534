"""Tests of the search for wrong labels: against cleanlab, and on labels that are known to be wrong."""

import re

import numpy as np
import pytest

from sft_jax.inspect.labels import probabilities, suspected, wrong_labels


def blobs(per_class, classes=3, channels=8, seed=0):
    """Returns features in well separated clusters, and their labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(classes * per_class) % classes
    centres = 4 * np.eye(classes, channels)
    return (centres[labels] + generator.standard_normal((len(labels), channels))).astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 4, 11])
@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_the_same_labels_as_cleanlabs_are_suspected(classes, sharpness):
    """find_label_issues(filter_by="low_self_confidence") is the oracle."""
    find = pytest.importorskip("cleanlab.filter", reason="needs cleanlab").find_label_issues
    generator = np.random.default_rng(classes)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, 500)])
    logits = sharpness * (generator.standard_normal((len(labels), classes)) + np.eye(classes)[labels])
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    theirs = find(labels, chances, filter_by="low_self_confidence", return_indices_ranked_by="self_confidence")
    assert len(theirs)
    assert suspected(chances, labels).tolist() == theirs.tolist()


def test_suspects_of_a_small_example():
    """The mean own probability of both classes is 0.6. Rows 2 and 4 are confidently of the other class."""
    labels = np.array([0, 0, 0, 1, 1])
    own = np.array([0.9, 0.8, 0.1, 1.0, 0.2])
    chances = np.where(labels[:, None] == np.arange(2), own[:, None], 1 - own[:, None])
    chances[4] = (0.8, 0.2)
    assert suspected(chances, labels).tolist() == [2, 4]
    chances[4] = (0.55, 0.45)  # not as probable as other pictures of class 0
    assert suspected(chances, labels).tolist() == [2]


def test_labels_that_were_changed_are_found():
    features, truth = blobs(60)
    wrong = np.random.default_rng(1).choice(len(truth), 9, replace=False)
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + 1) % 3
    found = wrong_labels(features, labels, np.arange(len(labels)), ("a", "b", "c"), notices := [])
    assert {each.row for each in found} == set(wrong.tolist())
    assert [each.other for each in found] == ["abc"[truth[each.row]] for each in found]
    assert all(0.5 < each.score <= 1 and each.issue == "label" for each in found)
    (notice,) = notices
    assert re.fullmatch(r"a linear probe on the features agrees with 9\d\.\d% of the labels", notice)


def test_features_that_say_nothing_of_the_labels_are_reported():
    generator = np.random.default_rng(0)
    features, labels = generator.standard_normal((200, 8)).astype(np.float32), np.arange(200) % 4
    found = wrong_labels(features, labels, np.arange(200), tuple("abcd"), notices := [])
    assert len(found) > 40
    (notice,) = notices
    assert notice.endswith("% of the labels; so many suspects say more of the features than of the labels")


def test_a_copy_does_not_vouch_for_a_wrong_label():
    """Two copies with the same wrong label are held out together; apart, the one would predict that of the other."""
    features, labels = blobs(5, classes=2, channels=200)
    features[[8, 9]] = features[0] * 3
    labels[[8, 9]] = 1
    apart = probabilities(features, labels, np.arange(10))[[8, 9], 1]
    together = probabilities(features, labels, np.array([*range(8), 8, 8]))[[8, 9], 1]
    assert (together < 0.5).all()
    assert (together < apart).all()


def test_probabilities_do_not_depend_on_the_own_label():
    features, labels = blobs(10)
    other = labels.copy()
    other[4] = (labels[4] + 1) % 3
    clusters = np.arange(len(labels))
    one, two = (probabilities(features, each, clusters) for each in (labels, other))
    np.testing.assert_allclose(one.sum(1), 1, rtol=1e-12)
    # The fold of row 4 may change with its label, but not the class that the others give it.
    assert one[4].argmax() == two[4].argmax() == labels[4]


def test_many_features_are_reduced_to_their_principal_components(monkeypatch):
    features, labels = blobs(20, channels=40)
    monkeypatch.setattr("sft_jax.inspect.labels.COMPONENTS", 3)
    chances = probabilities(features, labels, np.arange(len(labels)))
    assert (chances.argmax(1) == labels).mean() > 0.9


def test_classes_with_one_picture_are_named_and_missing_ones_are_not():
    features, labels = blobs(10)
    labels = np.where(labels == 2, 3, labels)
    labels[0] = 4
    found = wrong_labels(features, labels, np.arange(len(labels)), ("a", "b", "none", "c", "d"), notices := [])
    assert 0 not in {each.row for each in found}
    assert notices[0] == "labels not tested, because there is only one image of the class: d"


def test_labels_are_not_tested_with_a_single_class():
    found = wrong_labels(np.eye(3, dtype=np.float32), np.zeros(3, int), np.arange(3), ("a", "b"), notices := [])
    assert found == []
    assert notices == ["labels not tested: that takes two classes of at least two images each"]
