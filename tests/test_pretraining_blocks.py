"""Blocks of tokens in random order: every one once in an epoch, and no state to keep."""

import numpy as np
import pytest

from llmnb.data import DataError
from llmnb.pretraining import tokens
from llmnb.pretraining.tokens import batch_at

POSITIONS = np.arange(1003)  # tokens that say where they stand
PINNED = [769, 469]


def epoch_of(seed, epoch, batch_size=7, block_size=10, positions=POSITIONS):
    """The rows (n_blocks, block_size + 1) of one epoch, as its batches bring them."""
    n_blocks = len(positions) // block_size
    first, last = epoch * n_blocks // batch_size, ((epoch + 1) * n_blocks - 1) // batch_size
    batches = [
        batch_at(positions, seed, index, batch_size, block_size) for index in range(first, last + 1)
    ]
    skipped = epoch * n_blocks - first * batch_size
    return np.concatenate(batches)[skipped : skipped + n_blocks]


@pytest.mark.parametrize("epoch", range(4))
def test_an_epoch_has_every_block_once(epoch):
    blocks = epoch_of(0, epoch)
    assert blocks.shape == (100, 11) and blocks.dtype == np.int64
    assert np.array_equal(blocks, (blocks[:, :1] + np.arange(11)) % 1003)
    starts = np.sort(blocks[:, 0])
    offset = int(starts.min()) if starts.min() else int(starts[starts < 10].max())
    assert 0 <= offset < 10
    assert sorted((starts - offset) % 1003) == list(range(0, 1000, 10))


def test_epochs_differ_in_order_and_borders():
    firsts = [epoch_of(0, epoch)[:, 0] for epoch in range(12)]
    orders = [tuple(first // 10) for first in firsts]
    assert len(set(orders)) == 12
    assert len({int(first[0]) % 10 for first in firsts}) > 3  # the offsets
    for order in orders:
        assert np.mean(np.diff(order) == 1) < 0.1  # neighbours are torn apart
    assert not np.array_equal(epoch_of(1, 0), epoch_of(0, 0))


@pytest.mark.parametrize("n", [1003, 1000, 19])
def test_every_token_is_read_and_predicted_sooner_or_later(n):
    blocks = np.concatenate([epoch_of(5, e, positions=np.arange(n)) for e in range(60)])
    assert set(blocks[:, :-1].flat) == set(blocks[:, 1:].flat) == set(range(n))


def test_a_batch_may_span_epochs():
    small = batch_at(np.arange(35), 0, 0, 20, 10)  # 3 blocks an epoch
    expected = np.concatenate([epoch_of(0, e, positions=np.arange(35)) for e in range(7)])
    assert np.array_equal(small, expected[:20])
    assert np.array_equal(batch_at(np.arange(35), 0, 1, 3, 10), expected[3:6])


def test_only_the_blocks_of_the_batch_are_read():
    class Tokens:
        n_read = 0

        def __len__(self):
            return 10_000_000

        def __getitem__(self, positions):
            self.n_read += positions.size
            return positions

    corpus = Tokens()
    batch_at(corpus, 0, 123, 4, 1000)
    assert corpus.n_read == 4 * 1001


def test_a_batch_depends_on_seed_and_index_alone():
    expected = batch_at(POSITIONS, 3, 70, 2, 10)
    for index in range(100):
        batch_at(POSITIONS, 3, index, 8, 16)  # earlier calls leave nothing behind
    assert np.array_equal(batch_at(POSITIONS, 3, 70, 2, 10), expected)
    assert expected[:, 0].tolist() == PINNED


@pytest.mark.parametrize(("n", "n_blocks", "left"), [(1003, 100, 2), (1001, 100, 0), (1000, 99, 9)])
def test_validation_predicts_every_token_but_the_first_once(n, n_blocks, left):
    blocks = tokens.validation_blocks(np.arange(n, dtype=np.uint16), 10)
    assert blocks.shape == (n_blocks, 11) and blocks.dtype == np.int64
    assert np.array_equal(blocks[:, 1:].ravel(), np.arange(1, n - left))
    assert np.array_equal(blocks[1:, 0], blocks[:-1, -1])


@pytest.mark.parametrize(("n", "block_size"), [(0, 10), (10, 10), (5, 10), (50, 0), (50, -1)])
def test_too_few_tokens_for_a_block_are_refused(n, block_size):
    few = np.arange(n)
    with pytest.raises(DataError, match=f"{n} tokens hold no block of {block_size}"):
        batch_at(few, 0, 0, 2, block_size)
    with pytest.raises(DataError, match=f"{n} tokens of the validation split hold no block of"):
        tokens.validation_blocks(few, block_size)
