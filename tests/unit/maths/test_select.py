"""The selection rule on the paper's Table 4, and its corner cases."""

import math

import pytest

from distwsss.maths.select import select_seeds

TABLE_4 = """
0.05-1.00 91.4 87.9 45.9 85.0 80.6 75.3 83.7 81.0 86.0 34.9 83.5 44.4 85.4 86.1 80.8 80.0 54.7 86.7 41.0 80.1 54.9 72.8
0.05-1.20 91.4 87.3 44.5 87.0 80.8 73.5 83.6 80.7 86.8 34.5 85.1 48.7 83.3 87.0 79.9 80.7 52.5 85.9 41.9 78.9 55.4 72.8
0.10-1.00 91.5 87.3 45.0 86.5 80.2 75.2 84.3 82.0 85.7 34.5 84.0 43.6 84.7 86.0 80.8 80.3 57.3 89.3 40.6 79.0 55.9 73.0
0.10-1.20 91.5 88.0 41.9 86.2 80.1 74.0 82.9 80.6 87.7 34.6 84.9 49.6 84.6 86.5 79.9 80.7 54.0 87.3 41.9 78.6 56.5 73.0
0.20-1.00 91.5 87.0 45.9 85.9 80.2 74.1 83.6 80.7 86.6 35.3 83.7 46.0 85.1 86.3 80.3 80.0 55.4 86.8 38.4 80.1 55.5 72.8
0.20-1.20 91.5 87.8 45.1 86.7 79.4 72.5 84.1 82.0 87.1 34.2 84.5 47.6 83.9 86.8 79.8 80.8 55.0 86.6 41.1 79.1 55.8 72.9
0.30-1.00 91.3 87.5 41.2 85.5 79.6 73.8 83.7 81.4 86.3 34.0 84.3 44.8 85.4 86.8 80.5 79.5 54.7 86.7 40.4 78.0 54.4 72.4
0.30-1.20 91.5 87.3 44.4 86.6 78.9 72.5 83.3 80.8 87.5 33.8 84.2 46.3 83.7 86.9 79.4 80.9 56.7 86.7 42.7 79.6 56.9 72.9
"""


def test_table_4_gives_the_papers_six():
    rows = [line.split() for line in TABLE_4.split("\n") if line]
    iou = {name: [float(value) for value in values[:-1]] for name, *values in rows}
    assert all(len(values) == 21 for values in iou.values())
    assert select_seeds(iou) == ["0.05-1.00", "0.05-1.20", "0.10-1.00", "0.10-1.20", "0.20-1.00", "0.30-1.20"]


def test_ties_go_to_the_first_listed():
    assert select_seeds({"a": [1.0, 0.0], "b": [1.0, 2.0]}) == ["a", "b"]
    assert select_seeds({"a": [1.0], "b": [1.0]}) == ["a"]


def test_absent_classes_are_skipped():
    nan = math.nan
    assert select_seeds({"a": [nan, 0.1], "b": [nan, 0.2]}) == ["b"]
    assert select_seeds({"a": [nan, 0.3], "b": [0.0, 0.2]}) == ["a", "b"]


def test_without_a_value_no_seed_is_selected():
    assert select_seeds({"a": [math.nan]}) == []
    assert select_seeds({}) == []


def test_rows_of_different_length_are_refused():
    with pytest.raises(ValueError, match="one value per class"):
        select_seeds({"a": [1.0], "b": [1.0, 2.0]})
