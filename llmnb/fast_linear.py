"""Fast routes for CPUs: the same models as in transformer.py, computed sooner.

`optimize_for_cpu` keeps the weights and serves training as well. `pack` is for generation alone: it
lays the weights out as the processor wants them, and can round them. A new token multiplies one row
by every matrix, so the time it takes is the time to read the weights. "bf16" lays them out once,
"int8" and "int4" also make them smaller. PyTorch's operators for this are private: where one is
missing, `pack` says so.
"""

from collections.abc import Iterator
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmnb import attention, files
from llmnb.attention import MultiHeadAttention
from llmnb.transformer import Block, Decoder, FeedForward

INT4_GROUP_WEIGHTS = 32  # neighbours that share a scale and an offset, as in GGUF's Q4_1
# A weight's height and width must be multiples of these; some kernels don't check.
MULTIPLES = {"bf16": (1, 1), "int8": (1, 16), "int4": (16, INT4_GROUP_WEIGHTS)}
KINDS = tuple(MULTIPLES)
ROWS_AT_ONCE = 256  # to round, because a whole matrix in fp32 would take much memory
MAX_FEW_ROWS = 4  # for more rows, bf16 is faster than unpacking small weights for each of them
MAX_PRODUCT_TOKENS = 256  # for longer sequences, the fused attention kernel is faster


class FastRMSNorm(nn.RMSNorm):
    """RMSNorm by the kernel of LayerNorm, which takes a third of the time in bf16."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) to the same."""
        if not _is_bf16_on_cpu(x):
            return super().forward(x)
        return rms_norm(x, self.weight.repeat(2), self.eps)


def rms_norm(x: Tensor, doubled_weight: Tensor | None, eps: float) -> Tensor:
    """The LayerNorm of [x, -x], whose mean is 0, begins with the RMSNorm of x: (…, width)."""
    width = x.shape[-1]
    doubled = torch.cat((x, -x), dim=-1)
    return torch.layer_norm(doubled, (2 * width,), doubled_weight, None, eps)[..., :width]


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """attention.attend, with quicker ways for short sequences and for a single query."""
    batch, heads, queries, d_k = query.shape
    is_short = 1 < queries <= MAX_PRODUCT_TOKENS
    if mask is None and query.shape == key.shape and is_short and _is_bf16_on_cpu(query):
        return _attend_by_products(query, key, value, causal)
    has_one_mask = mask is None or mask.dim() < 3 or mask.shape[-3] == 1
    if queries == 1 and has_one_mask and not causal:
        # The query heads that share a key/value head become its queries: nothing is copied.
        grouped = query.reshape(batch, key.shape[1], -1, d_k)
        output = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask)
        return output.reshape(batch, heads, 1, -1)
    return attention.attend(query, key, value, mask=mask, causal=causal)


def _attend_by_products(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Two matrix products: in bf16 the fused kernel's backward pass is slow on short sequences."""
    batch, heads, seq, d_k = query.shape
    query, key, value = (part.flatten(0, 1) for part in (query, key, value))
    scores = query.new_zeros(1, seq, seq)
    if causal:
        scores = scores.fill_(-torch.inf).triu_(1)
    scores = scores.expand(len(query), -1, -1)  # (batch * heads, seq, seq)
    scores = torch.baddbmm(scores, query, key.mT, alpha=d_k**-0.5)
    return torch.bmm(scores.softmax(dim=-1), value).unflatten(0, (batch, heads))


def _is_bf16_on_cpu(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"


class FastAttention(MultiHeadAttention):
    """MultiHeadAttention with the quicker `attend`."""

    attend = staticmethod(attend)

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in MultiHeadAttention; in training, one product where it takes no more memory."""
        # Norms keep the projections for the backward pass anyway.
        if not (x.requires_grad and context is x and self.norms and self.query.bias is None):
            return super().project(x, context)
        weight = torch.cat((self.query.weight, self.key.weight, self.value.weight))
        return self.split_heads(F.linear(x, weight)).split(self.sizes, dim=1)


class PackedAttention(FastAttention):
    """Queries, keys and values from one packed product, qkv; see `pack`."""

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in MultiHeadAttention, of x alone."""
        return self.split_heads(self.qkv(x)).split(self.sizes, dim=1)


class PackedFeedForward(FeedForward):
    """Gate and up from one packed product, gate_up; see `pack`."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, d_model) to the same."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)


def optimize_for_cpu(model: nn.Module) -> nn.Module:
    """The model itself, its norms and attention layers now with faster routes where they apply.

    Parameters and their names stay; only the class of a layer changes, as in
    torch.nn.utils.parametrize. On other devices the layers compute as before.
    """
    fast_classes = {nn.RMSNorm: FastRMSNorm, MultiHeadAttention: FastAttention}
    for module in model.modules():
        module.__class__ = fast_classes.get(type(module), type(module))
    return model


class PackedLinear(nn.Module):
    """x·Wᵀ + b in bf16, without gradients: the weights are packed, and smaller for few rows.

    The small weights come beside the bf16 ones, not in their place: this saves time, not memory.
    """

    def __init__(self, weight: Tensor, kind: str = "bf16", bias: Tensor | None = None) -> None:
        """weight: (out, in). Raises ValueError for an unknown kind, or a shape it can't take."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        if reason := _misfit(kind, *weight.shape):
            raise ValueError(reason)
        self.many_rows = _bf16(weight)
        self.few_rows = self.many_rows
        if kind != "bf16":
            self.few_rows = {"int8": _int8, "int4": _int4}[kind](weight)
        self.bias = None if bias is None else bias.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        rows = x.reshape(-1, self.in_features).contiguous()  # int4 takes nothing else
        product = self.few_rows if len(rows) <= MAX_FEW_ROWS else self.many_rows
        result = product(rows).view(*x.shape[:-1], self.out_features)
        return result if self.bias is None else result + self.bias


def _misfit(kind: str, height: int, width: int) -> str:
    """Why the kernels can't take (height, width); "" if they can."""
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}.")
    rows, columns = MULTIPLES[kind]
    if height % rows or width % columns:
        return f"{kind} takes multiples of {rows} by {columns}, not {height} by {width}"
    return ""


def _bf16(weight: Tensor):
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16().contiguous(), 1)
    product = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: product(x, packed, None, "none", [], "")


def _int8(weight: Tensor):
    """One scale for each row: w ≈ q·s, q from -127 to 127."""
    scale = (weight.abs().amax(dim=1).float() / 127).clamp_min(1e-12)[:, None]
    parts = zip(weight.split(ROWS_AT_ONCE), scale.split(ROWS_AT_ONCE), strict=True)
    whole = torch.cat([(rows.float() / step).round_().to(torch.int8) for rows, step in parts])
    scale, product = scale[:, 0].bfloat16(), torch.ops.aten._weight_int8pack_mm.default
    return lambda x: product(x, whole, scale)


def _int4(weight: Tensor):
    """A scale and an offset for each group: w ≈ (q - 8)·s + z, q from 0 to 15."""
    groups = weight.unflatten(1, (-1, INT4_GROUP_WEIGHTS))  # (out, groups, 32)
    low = groups.amin(dim=-1, keepdim=True).float()
    scale = ((groups.amax(dim=-1, keepdim=True).float() - low) / 15).clamp_min(1e-12)
    whole = []
    parts = (tensor.split(ROWS_AT_ONCE) for tensor in (groups, low, scale))
    for rows, start, step in zip(*parts, strict=True):
        steps = (rows.float() - start).div_(step)
        whole.append(steps.round_().clamp_(0, 15).flatten(1).int())
    both = torch.cat((scale, low + 8 * scale), dim=-1).transpose(0, 1)  # (groups, out, 2)
    both = both.contiguous().bfloat16()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.cat(whole), 1)
    product = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    return lambda x: product(x, packed, INT4_GROUP_WEIGHTS, both)


def pack(model: Decoder, kind: str = "bf16") -> "Decoder | PackedDecoder":
    """The decoder with fast products in bf16, its weights changed in place: for inference only.

    Queries, keys and values become one product, gate and up another. Where this machine has no such
    products, that is printed and the decoder comes back as it was. Raises ValueError for another
    kind.
    """
    if reason := unavailable(kind, model):
        print(f"No fast {kind} products here ({reason}): the decoder stays as it was.")
        return model
    optimize_for_cpu(model).to(torch.bfloat16).eval().requires_grad_(False)
    for block in model.blocks:
        for module, name, parts in _products(block):
            product = _joined([getattr(module, part) for part in parts], kind)
            for part in parts:
                setattr(module, part, None)
            setattr(module, name, product)
        block.attention.__class__ = PackedAttention
        if hasattr(block.feed_forward, "gate_up"):
            block.feed_forward.__class__ = PackedFeedForward
    # Rounding the head to 16 levels hurts most: it costs 6 % of the offline decoder's perplexity.
    model.head = _joined([model.head], "int8" if kind == "int4" else kind)
    return PackedDecoder(model)


def _products(block: Block) -> Iterator[tuple[nn.Module, str, tuple[str, ...]]]:
    """A block's products: the module they are in, their name there, and the layers they replace."""
    has_gate = block.feed_forward.gate is not None
    yield block.attention, "qkv", ("query", "key", "value")
    yield block.attention, "output", ("output",)
    if has_gate:
        yield block.feed_forward, "gate_up", ("gate", "up")
    else:
        yield block.feed_forward, "up", ("up",)
    yield block.feed_forward, "down", ("down",)


def _joined(layers: list[nn.Linear], kind: str) -> PackedLinear:
    """One product for layers with the same input."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    bias = None
    if layers[0].bias is not None:
        bias = torch.cat([layer.bias.detach() for layer in layers])
    return PackedLinear(weight, kind, bias)


class PackedDecoder(nn.Module):
    """Called like the packed Decoder in it; quicker for one new token of a Llama or Qwen3."""

    def __init__(self, model: Decoder) -> None:
        """model: with packed layers, see `pack`."""
        super().__init__()
        self.model = model
        self.config = model.config
        self.embedding = model.embedding
        self.layers = None
        style = (self.config.positions, self.config.norm, self.config.activation)
        is_llama_like = style == ("rotary", "rms", "swiglu") and not self.config.bias
        if is_llama_like and self.config.norm_first:
            self.layers = [_flattened(block) for block in model.blocks]

    def forward(
        self, input_ids: Tensor, *, attention_mask=None, cache=None, last_only: bool = False
    ) -> Tensor:
        """As Decoder.forward."""
        is_one_token = cache is not None and attention_mask is None and input_ids.numel() == 1
        is_recording = self.model.blocks[0].attention.recorder is not None
        if self.layers and is_one_token and not is_recording:
            return self._one_token(input_ids, cache)
        return self.model(
            input_ids, attention_mask=attention_mask, cache=cache, last_only=last_only
        )

    def _one_token(self, input_ids: Tensor, cache) -> Tensor:
        """Decoder.forward for one token, (1, 1) to (1, 1, vocab), without what that doesn't need.

        An operation takes some microseconds to call, and over thirty layers the calls cost as much
        as the arithmetic.
        """
        config, position = self.config, cache.length
        x = self.model.embed(input_ids, input_ids, position)[0]  # (1, d_model)
        rotation = self.model.rotation(torch.tensor([position]), x.dtype)
        cos, sin = (part[0] for part in rotation)  # (1, head_dim) each
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            heads = layer.qkv(rms_norm(x, layer.attention_norm, config.norm_eps))
            heads = heads.view(layer.heads + 2 * layer.kv_heads, -1)  # (…, head_dim)
            rotated = heads[: layer.heads + layer.kv_heads]  # queries and keys
            if layer.qk_norm is not None:
                rotated = rms_norm(rotated, None, config.norm_eps) * layer.qk_norm
            half = rotated.shape[1] // 2
            target = heads[: layer.heads + layer.kv_heads]
            torch.addcmul(rotated * cos, rotated.roll(half, 1), sin, out=target)
            query, new = heads.split((layer.heads, 2 * layer.kv_heads))
            both = layer_cache.tensor[:, :, :, : position + 1]  # (2, 1, kv_heads, seq, head_dim)
            both[:, 0, :, position] = new.view(2, layer.kv_heads, -1)
            query = query.view(1, layer.kv_heads, layer.heads // layer.kv_heads, -1)
            output = F.scaled_dot_product_attention(query, both[0], both[1])
            x = x + layer.output(output.view(1, -1))
            hidden = layer.gate_up(rms_norm(x, layer.feed_forward_norm, config.norm_eps))
            gate, up = hidden.chunk(2, dim=1)
            x = x + layer.down(F.silu(gate) * up)
        cache.length += 1
        return self.model.head(self.model.norm(x))[None]


def _flattened(block: nn.Module) -> SimpleNamespace:
    """A block's numbers and products, without the modules around them."""
    layer, feed_forward = block.attention, block.feed_forward
    heads, kv_heads, _ = layer.sizes
    qk_norm = None
    if layer.norms is not None:
        query_weight = layer.norms["query"].weight.expand(heads, -1)
        key_weight = layer.norms["key"].weight.expand(kv_heads, -1)
        qk_norm = torch.cat((query_weight, key_weight))  # (heads + kv_heads, head_dim)
    return SimpleNamespace(
        heads=heads,
        kv_heads=kv_heads,
        attention_norm=block.attention_norm.weight.repeat(2),
        qkv=layer.qkv.few_rows,
        qk_norm=qk_norm,
        output=layer.output.few_rows,
        feed_forward_norm=block.feed_forward_norm.weight.repeat(2),
        gate_up=feed_forward.gate_up.few_rows,
        down=feed_forward.down.few_rows,
    )


def unavailable(kind: str, model: Decoder | None = None) -> str:
    """Why products of this kind can't be used for the model; "" if it has."""
    for block in model.blocks if model is not None else ():
        for module, _, parts in _products(block):
            layers = [getattr(module, part) for part in parts]
            height = sum(layer.out_features for layer in layers)
            if reason := _misfit(kind, height, layers[0].in_features):
                return reason
    if model is not None and model.embedding.weight.device.type != "cpu":
        return f"the model is on {model.embedding.weight.device.type}, they are for CPUs"
    weight, x = torch.eye(64), torch.ones(1, 64, dtype=torch.bfloat16)
    try:
        product = PackedLinear(weight, kind)(x)
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        return files.first_line(error)[:120]
    expected = F.linear(x.float(), weight)
    return (
        "" if torch.allclose(product.float(), expected, atol=0.02) else "they compute wrong results"
    )
