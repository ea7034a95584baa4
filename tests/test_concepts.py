"""Counting models against nltk and a naive version; every model in bits."""

import itertools
import lzma
import math
import re

import numpy as np
import pytest
import torch
import transformers

from llmnb import concepts
from llmnb.concepts import NgramModel

TEXT = [0, 1, 2, 0, 1, 3, 0, 2, 2, 1, 0, 1, 2, 3, 3, 0, 1, 2, 0, 4, 1, 2, 0, 1]


def naive(symbols, order, vocab_size, discounts, context, word):
    """The formula, level by level, with sets and loops."""
    if order == 0:
        return 1 / vocab_size

    def count(gram, top):
        n = len(gram)
        windows = [tuple(symbols[i : i + n]) for i in range(len(symbols) - n + 1)]
        if top:
            return windows.count(gram)
        longer = {tuple(symbols[i : i + n + 1]) for i in range(len(symbols) - n)}
        return sum(1 for other in longer if other[1:] == gram)

    top = order == len(discounts)
    history = tuple(context[len(context) - order + 1 :])
    counts = [count((*history, w), top) for w in range(vocab_size)]
    shorter = naive(symbols, order - 1, vocab_size, discounts, context, word)
    if sum(counts) == 0:
        return shorter
    discount = discounts[order - 1]
    direct = max(counts[word] - discount, 0) / sum(counts)
    return direct + discount * sum(c > 0 for c in counts) / sum(counts) * shorter


@pytest.mark.parametrize("order", [1, 2, 4])
def test_equals_the_naive_formula_in_every_context(order):
    discounts = (0.6, 0.5, 0.4, 0.3)[:order]
    model = NgramModel(np.array(TEXT), order, 5, discounts)
    for context in itertools.product(range(5), repeat=order - 1):
        expected = [naive(TEXT, order, 5, discounts, context, word) for word in range(5)]
        np.testing.assert_allclose(model.distribution(context), expected, atol=1e-12)
        assert model.distribution(context).sum() == pytest.approx(1, abs=1e-9)


def test_equals_nltk_on_a_closed_vocabulary():
    from nltk.lm import KneserNeyInterpolated
    from nltk.util import everygrams

    words = [str(symbol) for symbol in TEXT]
    # nltk does not discount its lowest level, so ours gets the discount 0 there
    reference = KneserNeyInterpolated(3, discount=0.1)
    reference.fit([list(everygrams(words, max_len=3))], vocabulary_text=words)
    ours = NgramModel(np.array(TEXT), 3, 5, (0.0, 0.1, 0.1))
    for context in set(itertools.pairwise(TEXT)):
        expected = [reference.score(str(w), [str(c) for c in context]) for w in range(5)]
        np.testing.assert_allclose(ours.distribution(context), expected, atol=1e-12)


def test_long_contexts_of_bytes_have_a_distribution_seen_or_not():
    generator = np.random.default_rng(0)
    symbols = concepts.to_bytes(bytes(generator.choice(list(b"abc \xff"), size=5000)))
    model = NgramModel(symbols, 8, 256)
    for context in (generator.integers(0, 256, 8), symbols[:8], symbols[4000:4008]):
        distribution = model.distribution(context)
        assert abs(distribution.sum() - 1) < 1e-9 and distribution.min() > 0


def test_log2_probs_are_the_distributions():
    symbols = np.array(TEXT)
    model = NgramModel(symbols, 3, 5)
    other = np.array([4, 4, 0, 1, 2, 3])
    expected = [math.log2(model.distribution(other[: i + 1])[other[i + 1]]) for i in range(1, 5)]
    np.testing.assert_allclose(model.log2_probs(other), expected)


def test_a_context_fits_into_an_integer_or_is_refused():
    symbols = np.array([19_999, 7, 0, 19_999, 7, 1] * 3)
    assert NgramModel(symbols, 4, 20_000).distribution([19_999, 7, 0])[19_999] > 0.5
    with pytest.raises(ValueError, match=r"1 … 4"):
        NgramModel(symbols, 5, 20_000)


def test_samples_follow_the_distribution_and_the_seed():
    model = NgramModel(np.array(TEXT), 2, 5)
    sample = model.sample(4000, [0], seed=1)
    assert sample == model.sample(4000, [0], seed=1) != model.sample(4000, [0], seed=2)
    after_zero = [b for a, b in itertools.pairwise(sample) if a == 0]
    shares = np.bincount(after_zero, minlength=5) / len(after_zero)
    np.testing.assert_allclose(shares, model.distribution([0]), atol=0.04)


@pytest.mark.parametrize(
    ("symbols", "order", "message"),
    [
        ([0, 1, 9], 2, "go from 0 to 9"),
        ([0, -1, 1], 2, "go from -1"),
        ([0.5, 1.0], 1, "integers"),
        ([0], 2, "too few"),
        ([0, 1], 0, "order is 0"),
    ],
)
def test_bad_symbols_are_refused(symbols, order, message):
    with pytest.raises(ValueError, match=message):
        NgramModel(np.array(symbols), order, 5)


def test_words_and_marks_are_tokens():
    tokens = concepts.word_tokens("Don't stop! The film’s end, the END.")
    assert tokens == ["don't", "stop", "!", "the", "film’s", "end", ",", "the", "end", "."]
    assert concepts.word_tokens("a\0b") == ["a", "b"]  # END_OF_TEXT is no word


def test_perplexity_and_bits_per_byte_by_hand():
    log2_probs = np.log2([0.5, 0.25, 0.125])
    assert concepts.perplexity(log2_probs) == pytest.approx(4)
    assert concepts.bits_per_byte(-log2_probs, np.array([1, 3])) == pytest.approx(6 / 4)
    assert list(concepts.block_sizes(["a", "é", "汉"])) == [1, 2, 3]


def test_ngram_bits_read_each_block_from_its_beginning():
    model = NgramModel(concepts.to_bytes(b"\0abc" * 50), 3, 256)
    alone = concepts.ngram_bits(model, ["abc"])
    np.testing.assert_allclose(concepts.ngram_bits(model, ["zzz", "abc"])[1], alone[0])
    assert alone[0] < concepts.ngram_bits(model, ["zzz"])[0] / 2


def test_xz_bits_add_up_to_the_archives_growth():
    generator = np.random.default_rng(0)
    vocabulary = ["".join(map(chr, generator.integers(97, 123, 6))) for _ in range(300)]
    text = " ".join(generator.choice(vocabulary, 40_000))
    train, blocks = text[:200_000].encode(), [text[200_000 + i * 1024 :][:1024] for i in range(32)]
    bits = concepts.xz_bits(train, blocks)
    size = 1 << (len(train) + 32 * 1024 - 1).bit_length()
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 6, "dict_size": size}]
    both = lzma.compress(train + "".join(blocks).encode(), lzma.FORMAT_RAW, filters=filters)
    alone = lzma.compress(train, lzma.FORMAT_RAW, filters=filters)
    assert bits == 8 * (len(both) - len(alone))
    assert bits < concepts.xz_bits(b"", blocks)  # it has learned the words


class Bytes:
    """A byte tokenizer, as little of one as is needed; a lossy one decodes wrongly."""

    bos_token_id, eos_token_id = 256, None

    def __init__(self, is_lossy=False):
        self.is_lossy = is_lossy

    def __call__(self, text, **options):
        return {"input_ids": list(text.encode())}

    def decode(self, ids, **options):
        return "?" if self.is_lossy else bytes(ids).decode()

    def get_vocab(self):
        return {}


@pytest.fixture
def tiny_decoder():
    sizes = {"vocab_size": 257, "hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.5}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).eval()


def test_decoder_bits_equal_the_models_own_loss(tiny_decoder):
    blocks = ["short", "a longer block", "é", "the longest block of them all"]
    bits = concepts.decoder_bits(tiny_decoder, Bytes(), blocks, batch_size=2)
    for block, ours in zip(blocks, bits, strict=True):
        ids = torch.tensor([[256, *block.encode()]])
        loss = tiny_decoder(ids, labels=ids).loss.item()  # mean nats over the bytes
        assert ours == pytest.approx(loss * len(block.encode()) / math.log(2), rel=1e-5)


def test_a_tokens_surprise_is_what_it_adds_to_the_bits_of_the_text_before_it(tiny_decoder):
    beginnings = ["e", "ei", "ein"]
    bits = concepts.decoder_bits(tiny_decoder, Bytes(), beginnings)
    _, (ids, surprises) = concepts.token_surprises(tiny_decoder, Bytes(), ["a longer one", "ein"])
    assert ids == list(b"ein")
    np.testing.assert_allclose(surprises, np.diff(bits, prepend=0), rtol=1e-5)


def test_a_tokenizer_that_loses_text_is_refused():
    with pytest.raises(ValueError, match="Encoding and decoding changes the text"):
        concepts.decoder_bits(None, Bytes(is_lossy=True), ["text"])


@pytest.mark.slow
def test_the_real_decoder_prefers_english_to_noise(decoder):
    texts = ["The film was a great success at the box office.", "Xq zvt plm wrk jj. " * 3]
    english, noise = concepts.decoder_bits(*decoder, texts)
    assert english / 47 < 2 < noise / 57
    tokens, probabilities = concepts.next_tokens(*decoder, "The capital of France is", 3)
    assert tokens[0] == "·Paris" and abs(probabilities.sum() - 1) < 1e-6


@pytest.mark.slow
def test_pieces_show_what_a_token_is(decoder, encoder):
    bpe, wordpiece = decoder[1], encoder[1]
    pieces = concepts.pieces(bpe, bpe("Hi 你\n")["input_ids"])
    assert pieces[0] == "Hi" and pieces[-1] == "⏎"
    codes = re.findall(r"⟨(..)⟩", "".join(pieces))
    assert bytes(int(code, 16) for code in codes).decode() == "你"
    ids = wordpiece("untranslatable ☃", add_special_tokens=False)["input_ids"]
    pieces = concepts.pieces(wordpiece, ids)
    assert pieces[0] == "un" and pieces[1].startswith("##") and pieces[-1] == "[UNK]"
