"""Faster products for generation on a CPU: weights laid out, or rounded, for one row at a time.

A new token multiplies one row by every matrix, so its time is the time to read the weights.
"bf16" lays them out once as the processor's kernels want them; "int8" and "int4" also make them
smaller. The operators are PyTorch's own but private: where one is missing, `pack` says so.
"""

from collections.abc import Iterator
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmnb.transformer import Decoder

KINDS = ("bf16", "int8", "int4")
_GROUP = 32  # int4: this many weights in a row share a scale and an offset, as in GGUF's Q4_1
_FEW = 4  # rows; from there on bf16 is faster than unpacking small weights again for each


class PackedLinear(nn.Module):
    """x·Wᵀ in bf16, without gradients: from packed bf16 weights, or for few rows from smaller ones.

    The small weights come beside the bf16 ones, not in their place: this saves time, not memory.
    """

    def __init__(self, weight: Tensor, kind: str = "bf16") -> None:
        """weight: (out, in). Raises ValueError for an unknown kind or a width int4 can't group."""
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}.")
        self.out_features, self.in_features = weight.shape
        if reason := _misfit(kind, *weight.shape):
            raise ValueError(reason)
        self.many = _bf16(weight)
        self.one = self.many if kind == "bf16" else {"int8": _int8, "int4": _int4}[kind](weight)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        rows = x.reshape(-1, self.in_features).contiguous()  # int4 takes nothing else
        product = self.one if len(rows) <= _FEW else self.many
        return product(rows).view(*x.shape[:-1], self.out_features)


def _misfit(kind: str, height: int, width: int) -> str:
    """Why the kernels can't take (height, width), which they themselves don't always say; or ""."""
    wanted = {"bf16": (1, 1), "int8": (1, 16), "int4": (16, _GROUP)}[kind]
    if height % wanted[0] or width % wanted[1]:
        return f"{kind} takes multiples of {wanted[0]} by {wanted[1]}, not {height} by {width}"
    return ""


def _bf16(weight: Tensor):
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16().contiguous(), 1)
    product = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: product(x, packed, None, "none", [], "")


def _parts(weight: Tensor) -> Iterator[slice]:
    """Rows to round at a time: in fp32, a whole matrix would cost more in memory than in sums."""
    return (slice(start, start + 256) for start in range(0, len(weight), 256))


def _int8(weight: Tensor):
    """One scale for each row: w ≈ q·s, q from -127 to 127."""
    whole = torch.empty(weight.shape, dtype=torch.int8)
    scale = (weight.abs().amax(dim=1).float() / 127).clamp_min(1e-12)[:, None]
    for rows in _parts(weight):
        whole[rows] = (weight[rows].float() / scale[rows]).round_()
    scale, product = scale[:, 0].bfloat16(), torch.ops.aten._weight_int8pack_mm.default
    return lambda x: product(x, whole, scale)


def _int4(weight: Tensor):
    """A scale and an offset for each group: w ≈ (q - 8)·s + z, q from 0 to 15."""
    groups = weight.unflatten(1, (-1, _GROUP))  # (out, groups, 32)
    low = groups.amin(dim=-1, keepdim=True).float()
    scale = ((groups.amax(dim=-1, keepdim=True).float() - low) / 15).clamp_min(1e-12)
    whole = torch.empty(weight.shape, dtype=torch.int32)
    for rows in _parts(weight):
        steps = (groups[rows].float() - low[rows]).div_(scale[rows])
        whole[rows] = steps.round_().clamp_(0, 15).flatten(1).int()
    both = torch.cat((scale, low + 8 * scale), dim=-1).transpose(0, 1)  # (groups, out, 2)
    both = both.contiguous().bfloat16()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole, 1)
    product = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    return lambda x: product(x, packed, _GROUP, both)


def pack(model: Decoder, kind: str = "bf16") -> "Decoder | PackedDecoder":
    """The decoder with fast products in bf16, its weights changed in place: for inference only.

    Queries, keys and values become one product, gate and up another. Where this machine has no such
    products, that is printed and the decoder comes back as it was. Raises ValueError for another
    kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}.")
    if reason := unavailable(kind, model):
        print(f"No fast {kind} products here ({reason}): the decoder stays as it was.")
        return model
    model.to(torch.bfloat16).eval().requires_grad_(False)
    for block in model.blocks:
        attention, feed_forward = block.attention, block.feed_forward
        attention.packed = _joined((attention.query, attention.key, attention.value), kind)
        attention.query = attention.key = attention.value = None
        if feed_forward.gate is not None:
            feed_forward.packed = _joined((feed_forward.gate, feed_forward.up), kind)
            feed_forward.gate = feed_forward.up = None
        else:
            feed_forward.up = _joined((feed_forward.up,), kind)
        attention.output = _joined((attention.output,), kind)
        feed_forward.down = _joined((feed_forward.down,), kind)
    # The scores themselves suffer most from 16 levels: 6 % of the offline decoder's perplexity.
    model.head = _joined((model.head,), "int8" if kind == "int4" else kind)
    return PackedDecoder(model)


class PackedDecoder(nn.Module):
    """Called like the Decoder in it. A single new token of a Llama or Qwen3 takes a shorter way."""

    def __init__(self, model: Decoder) -> None:
        """model: with packed layers, see `pack`."""
        super().__init__()
        self.model, self.config, self.embedding = model, model.config, model.embedding
        self.layers = None
        shape = (self.config.positions, self.config.norm, self.config.activation)
        plain = self.config.norm_first and not self.config.bias
        if shape == ("rotary", "rms", "swiglu") and plain:
            self.layers = [_plain(block) for block in model.blocks]

    def forward(self, input_ids, attention_mask=None, cache=None, last_only=False) -> Tensor:
        """As Decoder.forward."""
        alone = cache is not None and attention_mask is None and input_ids.numel() == 1
        if self.layers and alone and self.model.blocks[0].attention.recorder is None:
            return self._one_token(input_ids, cache)
        return self.model(input_ids, attention_mask, cache, last_only)

    def _one_token(self, input_ids: Tensor, cache) -> Tensor:
        """Decoder.forward for (1, 1) without what one token doesn't need: (1, 1, vocab).

        At a few microseconds an operation, the thirty layers' views and calls cost as much as
        their arithmetic.
        """
        config, position = self.config, cache.length
        x = self.model.embed(input_ids, input_ids, position)[0]  # (1, d_model)
        cos, sin = (part[0] for part in self.model.rotation(torch.tensor([position]), x.dtype))
        groups = config.heads[0] // config.heads[1]
        for layer, memory in zip(self.layers, cache.layers, strict=True):
            turned = layer.heads - layer.kv_heads  # queries and keys
            heads = layer.qkv(_rms(x, layer.attention_norm, config.norm_eps))
            heads = heads.view(layer.heads, -1)  # (heads + 2 kv_heads, head_dim)
            turn = heads[:turned]
            if layer.qk_norm is not None:
                turn = _rms(turn, None, config.norm_eps) * layer.qk_norm
            half = turn.shape[1] // 2
            torch.addcmul(turn * cos, turn.roll(half, 1), sin, out=heads[:turned])
            query, new = heads.split((turned - layer.kv_heads, 2 * layer.kv_heads))
            both = memory.tensor[:, :, :, : position + 1]  # (2, 1, kv_heads, seq, head_dim)
            both[:, 0, :, position] = new.view(2, layer.kv_heads, -1)
            query = query.view(1, layer.kv_heads, groups, -1)
            mixed = F.scaled_dot_product_attention(query, both[0], both[1])
            x = x + layer.output(mixed.view(1, -1))
            wide = layer.gate_up(_rms(x, layer.feed_forward_norm, config.norm_eps))
            gate, up = wide.chunk(2, dim=1)
            x = x + layer.down(F.silu(gate) * up)
        cache.length += 1
        return self.model.head(self.model.norm(x))[None]


def _rms(x: Tensor, twice: Tensor | None, eps: float) -> Tensor:
    """attention.RMSNorm, with the weight twice over."""
    width = x.shape[1]
    return torch.layer_norm(torch.cat((x, -x), 1), (2 * width,), twice, None, eps)[:, :width]


def _plain(block: nn.Module) -> SimpleNamespace:
    """A block's numbers and products, without the modules around them."""
    attention, feed_forward, norms = block.attention, block.feed_forward, block.attention.norms
    query, key, _ = attention.sizes
    qk_norm = None
    if norms is not None:
        weights = (norms["query"].weight.expand(query, -1), norms["key"].weight.expand(key, -1))
        qk_norm = torch.cat(weights)
    return SimpleNamespace(
        heads=query + 2 * key,
        kv_heads=key,
        attention_norm=block.attention_norm.weight.repeat(2),
        qkv=attention.packed.one,
        qk_norm=qk_norm,
        output=attention.output.one,
        feed_forward_norm=block.feed_forward_norm.weight.repeat(2),
        gate_up=feed_forward.packed.one,
        down=feed_forward.down.one,
    )


class _Biased(nn.Module):
    def __init__(self, linear: PackedLinear, bias: Tensor) -> None:
        super().__init__()
        self.linear, self.bias = linear, nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.bias


def _joined(layers: tuple[nn.Linear, ...], kind: str) -> nn.Module:
    """One product for layers with the same input."""
    packed = PackedLinear(torch.cat([layer.weight.detach() for layer in layers]), kind)
    if layers[0].bias is None:
        return packed
    return _Biased(packed, torch.cat([layer.bias.detach() for layer in layers]).bfloat16())


def _shapes(model: Decoder) -> Iterator[tuple[int, int]]:
    """Height and width of every product that `pack` would make."""
    for block in model.blocks:
        attention, feed_forward = block.attention, block.feed_forward
        yield sum(attention.sizes) * attention.head_dim, model.config.d_model
        yield model.config.d_model, attention.sizes[0] * attention.head_dim
        gated = feed_forward.gate is not None
        yield model.config.d_ff * (2 if gated else 1), model.config.d_model
        yield model.config.d_model, model.config.d_ff


def unavailable(kind: str, model: Decoder | None = None) -> str:
    """Why the products can't be had here; "" if they can."""
    if model is not None and model.embedding.weight.device.type != "cpu":
        return f"the model is on {model.embedding.weight.device.type}, they are for CPUs"
    if model is not None:
        for height, width in _shapes(model):
            if reason := _misfit(kind, height, width):
                return reason
    weight, x = torch.eye(64), torch.ones(1, 64, dtype=torch.bfloat16)
    try:
        product = PackedLinear(weight, kind)(x)
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        return str(error).splitlines()[0][:120]
    expected = F.linear(x.float(), weight)
    return "" if torch.allclose(product.float(), expected, atol=0.02) else "they give other numbers"
