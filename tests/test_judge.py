"""Judges that are scripted, counted by hand."""

import numpy as np
import pytest

from llmnb.evaluation.judge import outcomes
from llmnb.evaluation.uncertainty import proportion


def test_outcomes_by_hand():
    #        consistent  first  second  right on average, though the first wins in both orders
    first = [0.9, 0.9, 0.2, 0.9]
    second = [0.2, 0.9, 0.1, 0.8]
    result = outcomes(first, second)
    assert result["consistent"] == proportion(1, 4) and result["first"] == proportion(2, 4)
    averaged = result["averaged"]
    assert averaged.value == (1 + 0.5 + 1 + 1) / 4
    assert (averaged.low, averaged.high) == (proportion(3, 4).low, proportion(4, 4).high)


def test_a_judge_that_always_takes_the_first_answer_is_a_coin():
    result = outcomes(np.ones(40), np.ones(40))
    assert result["first"].value == 1 and result["consistent"].value == 0
    assert result["averaged"].value == 0.5 and result["averaged"] == proportion(20, 40)


@pytest.mark.parametrize(("first", "second"), [([], []), ([1], [1, 0]), ([[1]], [[1]])])
def test_what_is_no_pair_is_refused(first, second):
    with pytest.raises(ValueError, match="one number for each pair"):
        outcomes(first, second)
