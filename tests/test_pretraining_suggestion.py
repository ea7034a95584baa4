"""What is suggested before a run, and what a run says when its validation loss turns up."""

import itertools
import time

import pytest
from conftest import small

from llmnb.pretraining import suggestion
from llmnb.pretraining.checkpoint import turned_up
from llmnb.pretraining.loop import Trainer
from llmnb.pretraining.recipe import PretrainingError


@pytest.fixture
def clock(monkeypatch):
    """Every step takes a second on this machine, whatever the size."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))


@pytest.mark.parametrize("epochs", [4, 0.5])
def test_the_largest_size_that_gets_enough_tokens_is_suggested(epochs, corpus, clock, monkeypatch):
    monkeypatch.setattr(suggestion, "MAX_EPOCHS", epochs)
    monkeypatch.setattr(suggestion, "SHAPES", ((32, 2), (48, 2), (64, 2)))
    tokens = int(epochs * len(corpus.train))  # in so many minutes only the text limits them

    def width_for(tokens_per_weight):
        plan = suggestion.suggest(corpus, 10**6, 16, tokens_per_weight)
        assert plan.recipe.tokens == tokens and plan.epochs == pytest.approx(epochs)
        return plan.recipe.d_model

    n_weights = suggestion.suggest(corpus, 10**6, 16, 1e-9).n_matrix_weights
    assert width_for(tokens / n_weights) == 64
    assert width_for(1.001 * tokens / n_weights) == 48
    assert width_for(1e9) == 32  # not even the smallest gets enough


def test_the_minutes_limit_the_tokens_and_the_line_can_be_pasted(corpus, clock):
    plan = suggestion.suggest(corpus, 0.5, block_size=16)
    assert plan.recipe.tokens == 30 * 16 * plan.recipe.batch_size  # 30 steps of a second
    trainer = Trainer(corpus, plan.recipe)
    assert trainer.n_parameters == plan.n_parameters and trainer.steps == 30
    first_line, *_ = str(plan).splitlines()
    assert first_line == "-p d_model 32 -p n_layers 2 -p n_heads 2 -p tokens 7680"


@pytest.mark.parametrize("values", [{"minutes": 0}, {"minutes": 1, "tokens_per_weight": 0}])
def test_a_budget_of_nothing_is_refused(values, corpus):
    with pytest.raises(PretrainingError, match="must be above 0"):
        suggestion.suggest(corpus, **values)


@pytest.mark.parametrize(
    ("losses", "training", "warns"),
    [
        ([3, 2, 2.01, 2.01], 1, False),
        ([3, 2, 2.1], 1, False),
        ([3, 2, 2.5, 2.1], 1, True),
        ([3, 2, 2.5, 2.1], 2.2, False),
        ([3], None, False),
    ],
)
def test_a_loss_has_turned_up_when_it_is_a_hundredth_above_its_lowest_twice(
    losses, training, warns
):
    rows = [
        {"validation_loss": loss, "loss": training, "tokens": 100 * i}
        for i, loss in enumerate(losses)
    ]
    assert bool(turned_up(rows)) == warns
    assert not warns or "2.000 after 100 tokens, now 2.100" in turned_up(rows)


def test_a_run_warns_once_when_it_begins_to_memorize(corpus, monkeypatch):
    losses = iter([30.0, 20.0, 25.0, 26.0, 27.0, 19.0, 24.0, 24.0])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: next(losses))
    lines = []
    Trainer(corpus, small(tokens=7 * 8 * 16), evaluations=7, say=lines.append).run()
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(warnings) == 2  # at 26, and at the second 24, after a new lowest loss
    assert "20.000 after" in warnings[0] and "19.000 after" in warnings[1]
