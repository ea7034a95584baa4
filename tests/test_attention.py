"""Attention against PyTorch's own, transformers' rotary positions, and loops over the formulas."""

import cmath
import functools
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama

from llmnb import attention, fast_linear
from llmnb.attention import MultiHeadAttention, attend, causal_mask, recording, rotary_positions

HALF = {torch.bfloat16: 2e-2, torch.float16: 4e-3}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6} | HALF
# Queries and keys; the mask for so many of them. There are 2 texts and 4 heads.
CASES = {
    "no mask": (5, 5, lambda q, k: None),
    "no mask, more queries": (7, 3, lambda q, k: None),
    "causal": (6, 6, causal_mask),
    "causal, keys before": (3, 7, causal_mask),
    "padding": (5, 5, lambda q, k: padding(k)),
    "padding, more keys": (3, 7, lambda q, k: padding(k)),
    "causal and padding": (6, 6, lambda q, k: causal_mask(q, k) & padding(k).flip(-1)),
    "one row for all queries": (4, 6, lambda q, k: random_mask(1, k)),
    "one a text": (4, 6, lambda q, k: random_mask(2, 1, q, k)),
    "one a head": (4, 6, lambda q, k: random_mask(4, q, k)),
    "one query": (1, 7, lambda q, k: None),
    "one query, padding": (1, 7, lambda q, k: padding(k)),
    "one query, one a head": (1, 7, lambda q, k: random_mask(2, 4, q, k)),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def padding(keys):
    """The first text is whole, the second two tokens shorter."""
    return attention.padding_mask(torch.tensor([[1] * keys, [1] * (keys - 2) + [0] * 2]))


def random_mask(*shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[..., 0] = True
    return mask


def inputs(queries, keys, dtype=torch.float32, kv_heads=4, width=8):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, queries, width), (2, kv_heads, keys, width), (2, kv_heads, keys, width)
    parts = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [part.to(dtype).requires_grad_() for part in parts]


def difference(ours, theirs):
    """The largest one between two tensors, or two sequences of them."""
    if isinstance(ours, torch.Tensor):
        ours, theirs = [ours], [theirs]
    pairs = list(zip(ours, theirs, strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def output_and_gradients(function, parts):
    """The output, and the gradients of query, key and value for a fixed weighting of it."""
    output = function(*parts)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    return [output, *torch.autograd.grad(output, parts, weights.to(output.dtype))]


def by_formula(query, key, value, mask=None):
    return attention.scaled_dot_product_attention(query, key, value, mask)[0]


FUSED = (
    attend,
    lambda query, key, value, mask=None, causal=False: fast_linear.attend(
        query, key, value, mask, causal
    ),
)


def fused(query, key, value, mask=None):
    """PyTorch's, the grouped heads written out."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


# Every mask with every way and every number of heads; every dtype with every way.
PAIRS = [(case, dtype, 4) for case in CASES for dtype in (torch.float32, torch.bfloat16)]
PAIRS += [(case, torch.float32, kv_heads) for case in CASES for kv_heads in (2, 1)]
PAIRS += [(case, dtype, 4) for case in ("causal", "padding") for dtype in TOLERANCE]


@pytest.mark.parametrize(("case", "dtype", "kv_heads"), dict.fromkeys(PAIRS), ids=str)
def test_every_way_equals_pytorchs_attention_in_values_and_gradients(case, dtype, kv_heads):
    queries, keys, make = CASES[case]
    mask, parts = make(queries, keys), inputs(queries, keys, dtype, kv_heads)
    theirs = output_and_gradients(lambda *qkv: fused(*qkv, mask), parts)
    for function in (by_formula, *FUSED) if kv_heads == 4 else FUSED:
        ours = output_and_gradients(functools.partial(function, mask=mask), parts)
        assert all(tensor.dtype == dtype for tensor in ours)
        assert difference(ours, theirs) <= TOLERANCE[dtype] * 4 / kv_heads  # more terms are summed


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (6, 6), (3, 7), (1, 7)])
def test_causal_is_the_causal_mask(queries, keys, kv_heads):
    parts = inputs(queries, keys, kv_heads=kv_heads)
    theirs = output_and_gradients(lambda *qkv: fused(*qkv, causal_mask(queries, keys)), parts)
    for function in FUSED:
        ours = output_and_gradients(functools.partial(function, causal=True), parts)
        assert difference(ours, theirs) <= 1e-6


def test_weights_are_a_distribution_over_what_may_be_seen():
    query, key, value = inputs(4, 6, torch.float64)
    mask = random_mask(2, 1, 4, 6)
    output, weights = attention.scaled_dot_product_attention(query, key, value, mask)
    assert difference(weights.sum(-1), torch.ones(2, 4, 4)) <= 1e-12
    assert (weights[~mask.expand_as(weights)] == 0).all()
    assert difference(weights @ value, output) <= 1e-12


def test_a_hand_worked_query():
    # scores 0 and 2·ln 3 / √4 = ln 3: weights 1/4 and 3/4
    query, key = torch.tensor([[2.0, 0, 0, 0]]), torch.tensor([[0.0] * 4, [math.log(3), 0, 0, 0]])
    output, weights = attention.scaled_dot_product_attention(query, key, torch.tensor([[8.0], [4]]))
    assert weights.tolist() == [pytest.approx([0.25, 0.75])] and output.item() == pytest.approx(5)


@pytest.mark.parametrize(
    ("function", "kv_heads"),
    [(by_formula, 4), (attend, 4), (attend, 2), (FUSED[1], 4), (FUSED[1], 2)],
)
@pytest.mark.parametrize(
    ("queries", "dtype"), [(1, torch.float32), *((5, dtype) for dtype in TOLERANCE)], ids=str
)
def test_a_query_that_sees_nothing_gets_zeros_and_no_nan(function, kv_heads, queries, dtype):
    parts = inputs(queries, 7, dtype, kv_heads)
    mask = random_mask(2, 1, queries, 7)
    mask[0, :, -1] = mask[1] = False
    output, *gradients = output_and_gradients(lambda *qkv: function(*qkv, mask), parts)
    assert (output[0, :, -1] == 0).all() and (output[1] == 0).all()
    assert all(tensor.isfinite().all() for tensor in (output, *gradients))
    assert all((gradient[1] == 0).all() for gradient in gradients)
    with torch.no_grad():  # another kernel
        assert (function(*parts, mask)[1] == 0).all()


@pytest.mark.parametrize("function", [by_formula, *FUSED])
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_scores_of_ten_thousands_do_not_overflow(function, dtype):
    query, key, value = (part.detach() for part in inputs(5, 7, dtype, width=64))
    query, key = query * 100, key * 100  # a product reaches 250,000; fp16 ends at 65,504
    precise = query.double() @ key.double().mT
    assert precise.max() > 1e5
    expected = (precise / 8).softmax(-1) @ value.double()
    assert difference(function(query, key, value), expected) <= HALF[dtype]


def test_a_query_sees_the_keys_up_to_its_own_position():
    for queries, keys in [(1, 1), (4, 4), (1, 5), (2, 5), (3, 4)]:
        before = keys - queries
        expected = [[k <= before + q for k in range(keys)] for q in range(queries)]
        assert causal_mask(queries, keys).tolist() == expected
    assert causal_mask(3).equal(causal_mask(3, 3)) and attention.padding_mask(None) is None


@pytest.mark.parametrize("mutation", ["no √d_k", "mask too early", "mask too late"])
def test_the_comparison_sees_a_broken_formula(mutation, monkeypatch):
    parts, mask = inputs(6, 6, torch.bfloat16), causal_mask(6)
    theirs = output_and_gradients(lambda *qkv: fused(*qkv, mask), parts)
    if mutation == "no √d_k":
        monkeypatch.setattr(attention, "math", SimpleNamespace(sqrt=lambda number: 1.0))
    else:
        mask = torch.ones(6, 6).tril(-1 if mutation == "mask too early" else 1).bool()
    ours = output_and_gradients(lambda *qkv: by_formula(*qkv, mask), parts)
    assert difference(ours, theirs) > 10 * TOLERANCE[torch.bfloat16]


def layer_and_reference():
    """Ours, and PyTorch's with the same random weights."""
    torch.manual_seed(0)
    ours, reference = MultiHeadAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    parts, state = (ours.query, ours.key, ours.value), {}
    for kind in ("weight", "bias"):
        state[f"in_proj_{kind}"] = torch.cat([getattr(part, kind) for part in parts])
        state[f"out_proj.{kind}"] = getattr(ours.output, kind)
    reference.load_state_dict(state)
    return ours.double(), reference.double()


@pytest.mark.parametrize("case", ["self", "causal", "padding", "cross", "cross, padding"])
def test_the_layer_equals_pytorchs_with_weights_and_gradients(case):
    ours, reference = layer_and_reference()
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, 7, 16, dtype=torch.float64) if "cross" in case else None
    other = x if context is None else context
    mask = padding(other.shape[1]) if "padding" in case else None
    theirs, their_weights = reference(
        x, other, other,
        key_padding_mask=None if mask is None else ~mask[:, 0, 0],
        attn_mask=~causal_mask(5) if case == "causal" else None,
        average_attn_weights=False,
    )  # fmt: skip
    options = {"context": context, "mask": mask, "causal": case == "causal"}
    fast = ours(x, **options)
    with recording(ours) as weights:
        formula = ours(x, **options)
    for output in (fast, formula):
        assert difference(output, theirs) <= 1e-12
        gradients = torch.autograd.grad(output.pow(2).sum(), [x, ours.key.weight])
        x_there, fused_there = torch.autograd.grad(
            theirs.pow(2).sum(), [x, reference.in_proj_weight], retain_graph=True
        )
        assert difference(gradients, [x_there, fused_there[16:32]]) <= 1e-11
    assert len(weights) == 1 and difference(weights[0], their_weights) <= 1e-12


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_grouped_heads_are_repeated_key_and_value_projections(queries, kv_heads):
    torch.manual_seed(0)
    grouped, whole = MultiHeadAttention(16, 4, kv_heads), MultiHeadAttention(16, 4)
    state = grouped.state_dict()
    for name in ("key", "value"):
        for kind in ("weight", "bias"):
            heads = state[f"{name}.{kind}"].unflatten(0, (kv_heads, 4))
            state[f"{name}.{kind}"] = heads.repeat_interleave(4 // kv_heads, dim=0).flatten(0, 1)
    whole.load_state_dict(state)
    x, context = torch.randn(2, queries, 16), torch.randn(2, 7, 16)
    options = {"context": context, "mask": padding(7)}
    assert difference(grouped(x, **options), whole(x, **options)) <= 1e-6
    with recording(grouped) as ours, recording(whole) as theirs:
        grouped(x, context=context)
        whole(x, context=context)
    assert difference(ours, theirs) <= 1e-6


@pytest.mark.parametrize("sizes", [(16, 3), (16, 4, 3), (16, 4, 8)], ids=str)
def test_heads_that_do_not_divide_are_refused(sizes):
    with pytest.raises(
        ValueError, match=r"16 is not divisible by 3 heads|4 heads can't share [38]"
    ):
        MultiHeadAttention(*sizes)
    assert MultiHeadAttention(16, 3, head_dim=5).query.weight.shape == (15, 16)


@pytest.mark.parametrize("causal", [True, False])
def test_recording_does_not_change_the_output(causal):
    torch.manual_seed(0)
    layer = MultiHeadAttention(16, 4, 2, head_dim=6, bias=False, qk_norm_eps=1e-6)
    x, rotation = torch.randn(2, 5, 16), rotary_positions(torch.arange(5), 6, 1e4, torch.float32)
    fast = layer(x, causal=causal, rotation=rotation)
    with recording(layer) as weights:
        formula = layer(x, causal=causal, rotation=rotation)
    assert difference(fast, formula) <= 1e-6
    assert weights[0].shape == (2, 4, 5, 5) and not weights[0].requires_grad
    assert (weights[0].triu(1) == 0).all() == causal


def test_recording_keeps_the_order_of_computation_and_ends_even_on_an_error():
    torch.manual_seed(0)
    layers = nn.ModuleList(MultiHeadAttention(16, 4) for _ in range(3))
    x = torch.randn(2, 5, 16)
    with recording(layers) as weights:
        for number in (2, 0, 1):
            layers[number](x)
    for number, found in zip((2, 0, 1), weights, strict=True):
        with recording(layers[number]) as alone:
            layers[number](x)
        assert difference(alone[0], found) == 0
    with pytest.raises(RuntimeError, match="shapes"), recording(layers) as weights:
        layers[0](x[..., :3])
    layers[0](x)
    assert not weights and all(layer.recorder is None for layer in layers)


def test_without_positions_the_order_of_tokens_does_not_matter():
    torch.manual_seed(0)
    layer, x, order = MultiHeadAttention(16, 4), torch.randn(2, 7, 16), torch.randperm(7)
    assert difference(layer(x[:, order]), layer(x)[:, order]) <= 1e-6
    turned = rotary_positions(torch.arange(7), 4, 10_000.0, torch.float32)
    ours, theirs = layer(x[:, order], rotation=turned), layer(x, rotation=turned)[:, order]
    assert difference(ours, theirs) > 1e-2


@pytest.mark.parametrize("width", [2, 8, 64])
def test_sinusoidal_positions_are_the_papers(width):
    expected = torch.zeros(200, width, dtype=torch.float64)
    for pos in range(200):
        for i in range(width // 2):  # section 3.5
            expected[pos, 2 * i] = math.sin(pos / 10_000 ** (2 * i / width))
            expected[pos, 2 * i + 1] = math.cos(pos / 10_000 ** (2 * i / width))
    assert difference(attention.sinusoidal_positions(torch.arange(200), width), expected) <= 2e-5


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_rotary_positions_equal_llamas_and_complex_numbers(theta):
    rope = {"rope_type": "default", "rope_theta": theta}
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters=rope)
    query, key = torch.randn(2, 2, 4, 9, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 0, 0, 1, 2, 3, 4, 5, 6], range(90, 99)])
    turned = rotary_positions(positions, 8, theta, torch.float32)
    ours = [attention.rotate(part, turned) for part in (query, key)]
    cos_sin = modeling_llama.LlamaRotaryEmbedding(config)(query, positions)
    assert difference(ours, modeling_llama.apply_rotary_pos_emb(query, key, *cos_sin)) <= 1e-5
    for text, place, pair in itertools.product(range(2), range(9), range(4)):
        angle = positions[text, place].item() * theta ** (-2 * pair / 8)
        number = complex(*query[text, 1, place, [pair, pair + 4]].tolist())
        result = complex(*ours[0][text, 1, place, [pair, pair + 4]].tolist())
        assert result == pytest.approx(number * cmath.exp(1j * angle), abs=2e-5)


def test_rotary_scores_depend_on_the_distance_alone():
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(at, other):
        turns = [rotary_positions(torch.tensor([p]), 8, 1e4, torch.float32) for p in (at, other)]
        return (attention.rotate(query, turns[0]) * attention.rotate(key, turns[1])).sum().item()

    assert score(7, 3) == pytest.approx(score(1007, 1003), abs=1e-3)
    assert score(5, 5) == pytest.approx((query * key).sum().item(), abs=1e-5)
    assert abs(score(7, 3) - score(7, 4)) > 1e-2 < abs(score(7, 3) - score(3, 7))


@pytest.mark.parametrize("kind", [attention.RMSNorm, fast_linear.FastRMSNorm])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 2**-7), (torch.float32, 4e-6)])
def test_rms_norm_equals_pytorchs_in_values_and_gradients(dtype, digits, scale, kind):
    norm = kind(64, eps=1e-5).to(dtype)
    nn.init.normal_(norm.weight, mean=1, generator=torch.Generator().manual_seed(0))
    shape, generator = (2, 5, 64), torch.Generator().manual_seed(1)
    x = (torch.randn(shape, generator=generator) * scale + scale / 3).to(dtype).requires_grad_()
    upstream = torch.randn(shape, generator=generator).to(dtype)
    ours = [norm(x), *torch.autograd.grad(norm(x), [x, norm.weight], upstream)]
    exact = F.rms_norm(x.double(), (64,), norm.weight.double(), 1e-5)
    exact = [exact, *torch.autograd.grad(exact, [x, norm.weight], upstream.double())]
    theirs = F.rms_norm(x, (64,), norm.weight, 1e-5)
    for one, other in zip([*ours, ours[0]], [*exact, theirs], strict=True):
        assert one.dtype == dtype and difference(one, other) <= digits * other.abs().max()
    assert ((ours[0] - exact[0]).abs() <= digits * exact[0].abs()).all()
