"""Generation against one pass, transformers and the tokenizer's own text."""

import itertools
import random

import pytest
import torch
import transformers
from scipy import stats

from llmnb import generation, models
from llmnb.generation import KeyValueCache, Sampling, complete, generate, steps
from llmnb.transformer import Decoder, TransformerConfig

ASSET = "SmolLM2-135M-Instruct-q4_1"
STYLES = {"gpt2": {}, "llama": {"n_kv_heads": 2}, "qwen3": {"n_kv_heads": 2, "head_dim": 16}}
TEXTS = ["I like 🙂 and 🥟, and you?", "你好,世界!学习很有趣。", "👨‍👩‍👧‍👦 𝔘𝔫𝔦 हिन्दी ሀለሐ naïve"]
TEXTS += ["\ufffd\ufffd\ufffd\ufffd\ufffd end", "the end \ufffd"]
TEXTS += ["\ufffd\ufffd\ufffd🙂 \ufffd𝔘"]  # bytes of a character after lost ones
SETTINGS = [(1.3, 5, 1), (1, 0, 0.3), (0.8, 20, 0.95), (1, 999, 1), (2, 0, 1e-9), (0.5, 7, 0.6)]


def loud(model, std=0.3):
    """The model with weights large enough for clear and varied choices."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=std)
    return model.eval().requires_grad_(False)


def tiny(style, vocab_size=64):
    torch.manual_seed(0)
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48, "n_positions": 96}
    sizes |= {"vocab_size": vocab_size, "tied": False} | STYLES[style]
    return loud(Decoder(TransformerConfig.of(style, **sizes)))


def random_ids(*shape, seed=1):
    return torch.randint(64, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer(ASSET)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def reciting(tokenizer, text, n_positions=128):
    """A decoder that says the text after a prompt of one token: each position has its own."""
    sizes = (len(tokenizer), n_positions, 1, 1, 1, n_positions)  # each position, a dimension
    model = loud(Decoder(TransformerConfig(*sizes, tied=False)), std=0)  # all zeros
    for position, token in enumerate([*ids_of(tokenizer, text), tokenizer.eos_token_id]):
        model.position_embedding.weight[position, position] = 1
        model.head.weight[token, position] = 1
    return model


def written(tokenizer, ids, stop=()):
    """The pieces of these ids, pushed one by one."""
    writer = generation._Writer(tokenizer, generation.stop_ids_of(tokenizer), stop)
    pieces = [writer.push(token) for token in ids if not writer.stops.is_finished]
    return pieces if writer.stops.is_finished else [*pieces, writer.close()]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("second", [20, 13])
def test_a_prompt_read_in_chunks_gives_the_logits_of_one_pass(style, second):
    model, ids = tiny(style), random_ids(2, 20)
    mask = (torch.arange(20) >= 20 - torch.tensor([[20], [second]])).long()
    real, mask = mask.bool(), None if mask.all() else mask
    whole = model(ids, attention_mask=mask)
    for sizes in [(1,) * 20, (5, 1, 14), (19, 1), (3, 17)]:
        cache, parts = KeyValueCache(model.config, 2, 20), []
        for start, end in itertools.pairwise(itertools.accumulate(sizes, initial=0)):
            so_far = mask if mask is None else mask[:, :end]
            parts.append(model(ids[:, start:end], attention_mask=so_far, cache=cache))
        difference = (torch.cat(parts, dim=1) - whole)[real]
        assert difference.abs().max() < 1e-4 * whole.std() and cache.length == 20


@pytest.mark.parametrize("style", STYLES)
def test_a_padded_batch_gives_what_each_row_gives_alone(style):
    model = tiny(style)
    rows = [random_ids(1, n, seed=n) for n in (1, 4, 9, 8)]
    alone = [generate(model, row, max_new_tokens=32)[0, -32:] for row in rows]
    ids, mask = random_ids(4, 9, seed=90), torch.zeros(4, 9, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, 9 - row.shape[1] :], mask[number, 9 - row.shape[1] :] = row[0], 1
    columns = list(steps(model, ids, attention_mask=mask, max_new_tokens=32))
    assert torch.equal(torch.stack(columns, dim=1), torch.stack(alone))


def test_the_cache_takes_the_memory_it_says():
    config = TransformerConfig(9, 32, n_layers=3, n_heads=4, d_ff=8, n_positions=50, n_kv_heads=2)
    cache = KeyValueCache(config, batch=5, capacity=11, like=torch.empty(0, dtype=torch.bfloat16))
    storages = {layer.tensor.untyped_storage().data_ptr() for layer in cache.layers}
    size = cache.layers[0].tensor.untyped_storage().nbytes()
    assert len(storages) == 1 and size == 2 * (2 * 3 * 5 * 2 * 11 * 8)  # 2 bytes a number


def test_a_cache_never_drops_a_token():
    config = TransformerConfig(9, 32, n_layers=1, n_heads=4, d_ff=8, n_positions=50, n_kv_heads=2)
    small, other = KeyValueCache(config, 1, capacity=4), KeyValueCache(config, 1, capacity=10)
    key = torch.randn(1, 2, 1, 8)
    small.length = 4
    with pytest.raises(ValueError, match="room for 4"):
        small.layers[0].append(key, key)
    with pytest.raises(ValueError, match="has 0 tokens, not 3"):
        small.copy_prefix(other, length=3)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
def test_filtered_scores_equal_transformers(temperature, top_k, top_p):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(8, 50, generator=generator)
    expected = logits.clone()
    for warper in [
        transformers.TemperatureLogitsWarper(float(temperature)),
        *([transformers.TopKLogitsWarper(top_k)] if top_k else []),
        *([transformers.TopPLogitsWarper(float(top_p))] if top_p < 1 else []),
    ]:
        expected = warper(None, expected)
    ours = Sampling(temperature, top_k, top_p).filtered(logits)
    torch.testing.assert_close(ours, expected)


def chi_square(draws, probabilities):
    """The p-value of the draws of likely tokens; none may have probability 0."""
    counts = torch.bincount(draws, minlength=len(probabilities)).double()
    assert counts[probabilities == 0].sum() == 0
    is_likely = probabilities * len(draws) >= 5
    expected = probabilities[is_likely].double()
    observed = counts[is_likely]
    return stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue


@pytest.mark.parametrize("values", [(1.0, 0, 1.0), (2.0, 12, 0.8)])
def test_draws_follow_the_filtered_distribution(values):
    model, ids, sampling = tiny("gpt2"), random_ids(1, 5), Sampling(*values)
    logits, generators = model(ids)[:, -1], [sampling.generator(0)]
    expected = sampling.filtered(logits).softmax(dim=-1)[0]
    rows = generate(model, ids.expand(3000, -1), max_new_tokens=1, sampling=sampling)[:, -1]
    draws = [sampling.choose(logits, generators) for _ in range(3000)]
    assert chi_square(rows, expected) > 1e-3
    assert chi_square(torch.cat(draws), expected) > 1e-3
    assert chi_square(rows, (expected > 0).float()) < 1e-9  # the test can fail


def drawn(ids, **settings):
    """30 new tokens for each row, at a high temperature."""
    sampling = Sampling(temperature=1.5, **settings)
    return generate(tiny("llama"), ids, max_new_tokens=30, sampling=sampling)[:, ids.shape[1] :]


def test_the_seed_decides_and_each_row_has_its_own():
    ids = random_ids(3, 6)
    batch = drawn(ids, seed=5)
    assert torch.equal(batch, drawn(ids, seed=5))
    assert Sampling(seed=5).generator(0).initial_seed() == 5  # a text alone has the seed itself
    for row in range(3):  # a part of the batch draws as it did in the whole
        alone = drawn(ids[row : row + 1], seed=5, first_row=row)
        assert torch.equal(alone[0], batch[row])
    assert not torch.equal(drawn(ids[:1], seed=6)[0], batch[0])


def test_batches_of_neighbouring_seeds_share_no_row():
    same_prompt = random_ids(1, 6).expand(8, -1)
    rows = torch.cat([drawn(same_prompt, seed=seed) for seed in (0, 1, 2)])
    assert len(rows.unique(dim=0)) == 3 * 8


def test_a_bad_setting_is_named():
    ranges = {
        "temperature": (-0.1, 1e-40, float("inf"), float("nan")),
        "top_k": (-1,),
        "top_p": (0.0, 1.01),
    }
    for name, values in ranges.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name} is {value}"):
                Sampling(**{name: value})


def test_too_many_tokens_and_none_are_refused_before_the_first():
    model, ids = tiny("gpt2"), random_ids(1, 8)
    assert [generate(model, ids, max_new_tokens=n).shape[1] for n in (0, 88)] == [8, 96]
    with pytest.raises(ValueError, match=r"8 tokens and 89 new ones .* 96 positions"):
        next(steps(model, ids, max_new_tokens=89))
    with pytest.raises(ValueError, match="There are no tokens"):
        next(steps(model, ids[:, :0]))


def test_a_row_goes_on_with_its_stop_id_while_others_go_on():
    model, ids = tiny("llama"), random_ids(2, 5)
    first, second = generate(model, ids, max_new_tokens=30)[:, 5:].tolist()
    stop = next(token for token in first[3:12] if token not in second + first[:3])
    at = first.index(stop)
    stopped = generate(model, ids, max_new_tokens=30, stop_ids=[stop])[:, 5:]
    assert stopped.tolist() == [first[:at] + [stop] * (30 - at), second]
    other = next(token for token in second[at + 1 : 25] if token not in first + second[: at + 1])
    ended = generate(model, ids, max_new_tokens=30, stop_ids=[other, stop])[:, 5:]  # all done
    assert ended.shape == (2, second.index(other) + 1) and set(ended[0, at:].tolist()) == {stop}


def test_prompts_are_padded_on_the_left(tokenizer):
    rows = [ids_of(tokenizer, prompt) for prompt in ("Once upon a time", "Hi", "你好 🙂")]
    ids, mask = generation.padded(tokenizer, ["Once upon a time", "Hi", "你好 🙂"])
    assert [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)] == rows
    assert torch.equal(mask, mask.sort(dim=1).values) and mask[0].any() and mask.shape == ids.shape


def test_prompts_that_are_no_prompts_are_refused(tokenizer):
    model = tiny("gpt2", len(tokenizer))
    assert complete(model, tokenizer, []) == []
    for prompts, message in [("a", "prompts is one string"), (["a", ""], "Prompt 1 is empty")]:
        with pytest.raises(ValueError, match=message):
            complete(model, tokenizer, prompts)
    with pytest.raises(ValueError, match="stop string is empty"):
        complete(model, tokenizer, ["a"], stop=["b", ""])


def test_stream_and_complete_give_the_text_of_the_ids(tokenizer):
    model, sampling = tiny("llama", len(tokenizer)), Sampling(0.9, 50, seed=0)
    texts = complete(model, tokenizer, ["One", "two and three"], 20, sampling)
    assert "".join(generation.stream(model, tokenizer, "One", 20, sampling)) == texts[0]
    ids, _ = generation.padded(tokenizer, ["One"])
    stop_ids = generation.stop_ids_of(tokenizer)
    new = generate(model, ids, max_new_tokens=20, sampling=sampling, stop_ids=stop_ids)[0]
    assert tokenizer.decode(new[ids.shape[1] :], skip_special_tokens=True) == texts[0]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_written_in_whole_characters(tokenizer, text):
    ids, model = ids_of(tokenizer, text), reciting(tokenizer, text)
    pieces = written(tokenizer, ids)
    assert "".join(pieces) == text  # and so no U+FFFD in a piece, where none is in the text
    for n in range(len(ids)):  # bytes of no character are released at the end
        begun = written(tokenizer, [*ids[:n], tokenizer.eos_token_id])
        assert "".join(begun) == tokenizer.decode(ids[:n])
    assert list(generation.stream(model, tokenizer, "Hi", 99)) == list(filter(None, pieces))
    assert complete(model, tokenizer, ["Hi", "Hello"], 99) == [text, text]
    assert complete(model, tokenizer, ["Hi"], 99, stop=text[1:3]) == [text.split(text[1:3])[0]]


def test_a_row_stops_by_itself_and_gives_out_what_was_held_back(tokenizer):
    model = reciting(tokenizer, "one two three four five")
    two = [model, tokenizer, ["Hi", "Hi Hi"]]  # the second is a token ahead
    assert complete(*two, 99, stop=["three"]) == ["one two ", " two "]
    assert complete(*two, 2, stop=["two three four"]) == ["one two", " two three"]
    assert "".join(written(tokenizer, ids_of(tokenizer, "end \ufffd"), ["\ufffd"])) == "end "


def test_a_tokenizer_whose_pieces_need_their_neighbours():
    wordpiece, text = models.load_tokenizer("all-MiniLM-L6-v2"), "untranslatable words, naively!"
    pieces = written(wordpiece, ids_of(wordpiece, text))
    assert "".join(pieces) == wordpiece.decode(ids_of(wordpiece, text)) and " words" in pieces


def test_any_text_is_cut_where_a_stop_string_first_appears(tokenizer):
    draw = random.Random(0)
    for _ in range(120):
        text = "".join(draw.choices("aab \n🙂中é", k=draw.randint(1, 30)))
        stops = ["".join(draw.choices("aab \n🙂中é", k=draw.randint(1, 3))) for _ in range(2)]
        ids = ids_of(tokenizer, text)
        assert "".join(written(tokenizer, ids, stops[:1])) == text.split(stops[0])[0]
        for n in range(1, len(ids) + 1):  # of two: when one is complete, the writing ends
            so_far = tokenizer.decode(ids[:n])
            positions = [so_far.index(stop) for stop in stops if stop in so_far]
            if positions:
                break
        assert "".join(written(tokenizer, ids, stops)) == text[: min(positions, default=None)]
