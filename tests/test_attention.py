"""Attention against PyTorch's own; test_transformer.py compares whole layers."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llmnb import attention, fast_linear
from llmnb.attention import MultiHeadAttention, attend, causal_mask, recording, rotary_positions

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-2, torch.float16: 4e-3}
# Queries and keys; the mask for so many of them. There are 2 texts and 4 heads.
CASES = {
    "no mask": (6, 6, lambda q, k: None),
    "no mask, more queries": (7, 3, lambda q, k: None),
    "causal": (6, 6, causal_mask),
    "causal, keys before": (3, 7, causal_mask),
    "causal, one query": (1, 7, causal_mask),
    "padding": (6, 6, lambda q, k: causal_mask(q, k) & padding(k).flip(-1)),
    "one row for all queries": (4, 6, lambda q, k: random_mask(1, k)),
    "one for every head": (4, 6, lambda q, k: random_mask(4, q, k)),
    "one query": (1, 7, lambda q, k: random_mask(2, 4, q, k)),
}
FUSED = (attend, fast_linear.attend)


def padding(keys):
    """The first text is whole, the second two tokens shorter."""
    return attention.padding_mask(torch.tensor([[1] * keys, [1] * (keys - 2) + [0] * 2]))


def random_mask(*shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[..., 0] = True
    return mask


def inputs(queries, keys, dtype=torch.float32, kv_heads=4, width=8):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 4, queries, width), *[(2, kv_heads, keys, width)] * 2
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
    """The output, and its weighted sum's gradients for query, key and value."""
    output = function(*parts)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    return [output, *torch.autograd.grad(output, parts, weights.to(output.dtype))]


def by_formula(query, key, value, mask=None):
    return attention.scaled_dot_product_attention(query, key, value, mask)[0]


def fused(query, key, value, mask=None):
    """PyTorch's, the grouped heads written out."""
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


SETTINGS = [(case, torch.float32, kv_heads) for case in CASES for kv_heads in (4, 1)]
SETTINGS += [(case, torch.bfloat16, 4) for case in ("no mask", "causal", "padding")]
SETTINGS += [("padding", torch.float16, 4)]


@pytest.mark.parametrize(("case", "dtype", "kv_heads"), SETTINGS, ids=str)
def test_every_way_equals_pytorchs_attention_in_values_and_gradients(case, dtype, kv_heads):
    queries, keys, mask_of = CASES[case]
    mask, parts = mask_of(queries, keys), inputs(queries, keys, dtype, kv_heads)
    theirs = output_and_gradients(lambda *qkv: fused(*qkv, mask), parts)
    ways = [functools.partial(function, mask=mask) for function in FUSED]
    if kv_heads == 4:
        ways.append(functools.partial(by_formula, mask=mask))
    if case.startswith("causal"):
        ways += [functools.partial(function, causal=True) for function in FUSED]
    for way in ways:
        ours = output_and_gradients(way, parts)
        assert all(tensor.dtype == dtype for tensor in ours)
        assert difference(ours, theirs) <= TOLERANCE[dtype] * 4 / kv_heads  # more terms


def test_a_hand_worked_query():
    # scores 0 and 2·ln 3 / √4 = ln 3: weights 1/4 and 3/4
    query, value = torch.tensor([[2.0, 0, 0, 0]]), torch.tensor([[8.0], [4]])
    key = torch.tensor([[0.0] * 4, [math.log(3), 0, 0, 0]])
    output, weights = attention.scaled_dot_product_attention(query, key, value)
    assert weights.tolist() == [pytest.approx([0.25, 0.75])]
    assert output.item() == pytest.approx(5)


@pytest.mark.parametrize(
    ("function", "kv_heads"), [(by_formula, 4), (attend, 2), (fast_linear.attend, 2)]
)
@pytest.mark.parametrize(("queries", "dtype"), [(1, torch.float32), (5, torch.bfloat16)], ids=str)
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
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scores_of_ten_thousands_do_not_overflow(function, dtype):
    query, key, value = (part.detach() for part in inputs(5, 7, dtype, width=64))
    query, key = query * 100, key * 100  # a product reaches 250,000; fp16 ends at 65,504
    precise = query.double() @ key.double().mT
    assert precise.max() > 1e5
    expected = (precise / 8).softmax(-1) @ value.double()
    assert difference(function(query, key, value), expected) <= TOLERANCE[dtype]


def test_a_query_sees_the_keys_up_to_its_own_position():
    for queries, keys in [(4, 4), (1, 5), (3, 4)]:
        before = keys - queries
        expected = [[k <= before + q for k in range(keys)] for q in range(queries)]
        assert causal_mask(queries, keys).tolist() == expected
    assert causal_mask(3).equal(causal_mask(3, 3))
    assert attention.padding_mask(None) is None


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((16, 3), "16 is not divisible by 3 heads"), ((16, 4, 3), "4 heads can't share 3")],
)
def test_heads_that_do_not_divide_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(*sizes)
    assert MultiHeadAttention(16, 3, head_dim=5).query.weight.shape == (15, 16)


@pytest.mark.parametrize("causal", [True, False])
def test_recording_does_not_change_the_output(causal):
    torch.manual_seed(0)
    layer = MultiHeadAttention(16, 4, 2, head_dim=6, bias=False, qk_norm_eps=1e-6)
    x = torch.randn(2, 5, 16)
    rotation = rotary_positions(torch.arange(5), 6, 1e4, torch.float32)
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
    for number, in_order in zip((2, 0, 1), weights, strict=True):
        with recording(layers[number]) as alone:
            layers[number](x)
        assert difference(alone[0], in_order) == 0
    with pytest.raises(RuntimeError, match="shapes"), recording(layers) as weights:
        layers[0](x[..., :3])
    layers[0](x)
    assert not weights and all(layer.recorder is None for layer in layers)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_fast_norm_of_bf16_equals_pytorchs_in_values_and_gradients(scale):
    norm = fast_linear.FastRMSNorm(64, eps=1e-5).bfloat16()
    generator = torch.Generator().manual_seed(0)
    nn.init.normal_(norm.weight, mean=1, generator=generator)
    x, upstream = torch.randn(2, 2, 5, 64, generator=generator)
    x, upstream = (x * scale + scale / 3).bfloat16().requires_grad_(), upstream.bfloat16()
    ours = [norm(x), *torch.autograd.grad(norm(x), [x, norm.weight], upstream)]
    exact = F.rms_norm(x.double(), (64,), norm.weight.double(), 1e-5)
    exact = [exact, *torch.autograd.grad(exact, [x, norm.weight], upstream.double())]
    for one, other in zip(ours, exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert difference(one, other) <= 2**-7 * other.abs().max()
