"""The vote against a brute force over pixels, with abstentions, scores and ties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distwsss.maths.vote import agreement, vote


def brute_force(seeds, scores=None):
    m, height, width = seeds.shape
    labels, votes = np.full((height, width), 255, np.uint8), np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            cast = [int(seeds[k, y, x]) for k in range(m)]
            counts = {c: cast.count(c) for c in cast if c != 255}
            if not counts:
                continue
            most = max(counts.values())
            tied = [c for c in dict.fromkeys(cast) if counts.get(c) == most]  # by the first seed that names each
            if scores is not None:
                sums = {}
                for c in tied:
                    sums[c] = np.float32(0)
                    for k in range(m):
                        if cast[k] == c:
                            sums[c] = np.float32(sums[c] + scores[k, y, x])
                best = max(sums.values())
                tied = [c for c in tied if sums[c] == best]
            labels[y, x], votes[y, x] = tied[0], most
    return labels, votes


@st.composite
def cases(draw):
    shape = (draw(st.integers(1, 8)), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    seeds = draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 3, 20, 254, 255])))
    scores = draw(arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 1.0]).map(np.float32)))
    return seeds, draw(st.sampled_from([None, scores]))


@settings(max_examples=400, deadline=None)
@given(cases())
def test_against_brute_force(case):
    seeds, scores = case
    before = seeds.copy(), None if scores is None else scores.copy()
    labels, votes = vote(seeds, scores)
    expected = brute_force(seeds, scores)
    assert labels.dtype == votes.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_array_equal(votes, expected[1])
    np.testing.assert_array_equal(seeds, before[0])
    if scores is not None:
        np.testing.assert_array_equal(scores, before[1])


def one(values, scores=None):
    column = np.array(values, np.uint8)[:, None, None]
    labels, votes = vote(column, None if scores is None else np.array(scores, np.float32)[:, None, None])
    return int(labels[0, 0]), int(votes[0, 0])


def test_the_papers_examples():
    assert one([20, 20, 0, 20, 5, 20]) == (20, 4)
    assert one([15, 1, 15, 2, 3, 15]) == (15, 3)


def test_ties_go_to_the_first_listed_seed_and_never_by_class_index():
    assert one([7, 3, 3, 7]) == (7, 2)
    assert one([3, 7, 7, 3]) == (3, 2)
    assert one([9, 7, 7, 3, 3]) == (7, 2)
    assert one([255, 4, 2]) == (4, 1)


def test_scores_decide_ties_only():
    assert one([1, 2], [0.4, 0.6]) == (2, 1)
    assert one([1, 2], [0.6, 0.6]) == (1, 1)
    assert one([1, 2, 2], [1.0, 0.1, 0.1]) == (2, 2)
    assert one([1, 2, 1, 2], [0.5, 0.75, 0.5, 0.5]) == (2, 2)


def test_abstentions():
    assert one([255, 255]) == (255, 0)
    assert one([255, 255, 6], [1, 1, 0]) == (6, 1)


@pytest.mark.parametrize(("shape", "dtype"), [((0, 2, 2), np.uint8), ((2, 2), np.uint8), ((1, 2, 2), np.int64)])
def test_seeds_that_are_none_are_refused(shape, dtype):
    with pytest.raises(ValueError, match="uint8"):
        vote(np.zeros(shape, dtype))


def test_scores_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="scores"):
        vote(np.zeros((2, 2, 2), np.uint8), np.zeros((1, 2, 2), np.float32))


@given(seeds=arrays(np.uint8, (3, 2, 3), elements=st.sampled_from([0, 1, 2, 255])), data=st.data())
@settings(max_examples=50, deadline=None)
def test_agreement_counts_the_seeds_that_have_the_label(seeds, data):
    labels = data.draw(arrays(np.uint8, (2, 3), elements=st.sampled_from([0, 1, 2, 255])))
    found = agreement(seeds, labels)
    assert found.dtype == np.uint8
    for y in range(2):
        for x in range(3):
            same = [k for k in range(3) if seeds[k, y, x] == labels[y, x]]
            assert found[y, x] == (0 if labels[y, x] == 255 else len(same))


def test_the_votes_of_a_vote_are_those_that_agree_with_it():
    seeds = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), (6, 20, 20))
    labels, votes = vote(seeds)
    np.testing.assert_array_equal(agreement(seeds, labels), votes)
