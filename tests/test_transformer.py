"""The Transformer's shapes against transformers and PyTorch: outputs, losses, gradients, tokens."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from test_attention import difference
from test_checkpoints import MODELS, ours, saved, scramble, theirs
from torch import nn

from llmnb import checkpoints, models
from llmnb.generation import KeyValueCache, generate
from llmnb.transformer import Decoder, Encoder, EncoderDecoder
from llmnb.transformer_config import FAMILIES, TransformerConfig

OURS = {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48, "n_positions": 64}
SHAPES = (Encoder, Decoder, EncoderDecoder)


def batch(kind, padded):
    """Ids, and a mask: with padding on the right for BERT, on the left for decoders."""
    ids = torch.randint(0, 97, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 7:] = mask[2, 11:] = 0
    return ids, mask if kind == "bert" else mask.flip(1)


def encoded(model, reference, ids, mask):
    """Hidden states and a loss from both: a random weighting, BertModel has no loss itself."""
    outputs = [
        model(ids, attention_mask=mask),
        reference(ids, attention_mask=mask).last_hidden_state,
    ]
    weights = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(2)) / len(ids)
    return outputs, [(x * weights)[mask.bool()].sum() / 12 for x in outputs]


def decoded(model, reference, ids, mask):
    """Logits and the loss of the next tokens from both; without padding we get no mask."""
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    labels = ids.where((mask * F.pad(mask, (1, 0))[:, :-1]).bool(), -100)  # not a text's first
    result = reference(ids, attention_mask=mask, position_ids=positions, labels=labels)
    logits = model(ids, attention_mask=None if mask.all() else mask)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return [logits, result.logits], [loss, result.loss]


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_checkpoint_gives_the_same_output_loss_and_gradients(kind, padded, tmp_path):
    reference, (ids, mask) = theirs(kind), batch(kind, padded)
    model = ours(kind, saved(reference, tmp_path))
    compute = encoded if kind == "bert" else decoded
    outputs, losses = compute(model, reference, ids, mask)
    for loss in losses:
        loss.backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    expected = checkpoints.renamed(kind.split(",")[0], expected)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert difference(*(output[mask.bool()] for output in outputs)) <= 1e-5
    assert difference(*losses) <= 1e-5 and gradients.keys() == expected.keys()
    assert max(difference(gradients[name], expected[name]) for name in gradients) <= 1e-5


def reference_state(blocks):
    """Our parameters under the names of nn.TransformerEncoder and nn.TransformerDecoder."""
    state = {}
    for number, block in enumerate(blocks):
        modules = {"linear1": block.feed_forward.up, "linear2": block.feed_forward.down}
        norms = [block.attention_norm, block.cross_norm, block.feed_forward_norm]
        norms = [norm for norm in norms if norm is not None]
        modules |= {f"norm{i}": norm for i, norm in enumerate(norms, start=1)}
        layers = {"self_attn": block.attention, "multihead_attn": block.cross_attention}
        for name, layer in layers.items():
            if layer is not None:
                modules[f"{name}.out_proj"] = layer.output
                for kind in ("weight", "bias"):
                    parts = [getattr(part, kind) for part in (layer.query, layer.key, layer.value)]
                    state[f"layers.{number}.{name}.in_proj_{kind}"] = torch.cat(parts)
        for name, module in modules.items():
            state |= {f"layers.{number}.{name}.{k}": p for k, p in module.named_parameters()}
    return state


def reference_logits(model, source, target, source_mask):
    """From PyTorch's own layers with our parameters, so that gradients flow back to these."""
    width, n_layers = model.config.d_model, model.config.n_layers
    sizes = width, model.config.n_heads, model.config.d_ff, 0.0
    encoder = nn.TransformerEncoderLayer(*sizes, batch_first=True)
    encoder = nn.TransformerEncoder(encoder, n_layers, enable_nested_tensor=False)
    decoder = nn.TransformerDecoderLayer(*sizes, batch_first=True)
    decoder = nn.TransformerDecoder(decoder, n_layers)
    angles = torch.arange(64)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
    positions = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)

    def embed(ids):
        return model.embedding.weight[ids] * math.sqrt(width) + positions[: ids.shape[1]]

    def call(module, blocks, *inputs, **options):
        return torch.func.functional_call(module, reference_state(blocks), inputs, options)

    padding = ~source_mask.bool()
    memory = call(encoder, model.encoder, embed(source), src_key_padding_mask=padding)
    later = torch.ones(target.shape[1], target.shape[1]).triu(1).bool()
    options = {"tgt_mask": later, "memory_key_padding_mask": padding}
    output = call(decoder, model.decoder, embed(target), memory, **options)
    return output @ model.head.weight.T


@pytest.mark.parametrize("tied", [True, False])
def test_the_encoder_decoder_equals_pytorchs_layers_in_values_and_gradients(tied):
    model = scramble(EncoderDecoder(TransformerConfig.of("original", **OURS, tied=tied)))
    source, mask = batch("bert", padded=True)
    target = torch.randint(0, 97, (3, 9), generator=torch.Generator().manual_seed(3))
    logits = model(source, target, source_mask=mask)
    both = [logits, reference_logits(model, source, target, mask)]
    losses = [F.cross_entropy(x[:, :-1].flatten(0, 1), target[:, 1:].flatten()) for x in both]
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    assert difference(*both) <= 1e-5 and difference(*losses) <= 1e-5
    assert max(map(difference, *gradients)) <= 1e-5
    altered = source.where(mask.bool(), 5)  # what padding says does not matter
    assert difference(model(altered, target, source_mask=mask), logits) == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_every_shape_and_no_idle_parameter(family, shape):
    config = TransformerConfig.of(family, **OURS | {"n_kv_heads": 2})
    model, (ids, _) = scramble(shape(config)), batch(family, False)
    output = model(ids, ids) if shape is EncoderDecoder else model(ids)
    assert output.shape == (3, 12, 32 if shape is Encoder else 97)
    (output * torch.randn_like(output)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "alibi"}, "positions is 'alibi'; choose one of learned, sinusoidal, rotary"),
        ({"norm": "batch"}, "norm is 'batch'; choose one of layer, rms"),
        ({"activation": "tanh"}, "activation is 'tanh'; choose one of gelu, gelu_tanh, relu"),
        *(({name: 0}, f"{name} is 0; it must be at least 1") for name in OURS),
        ({"positions": "rotary", "d_model": 36}, "pairs of dimensions, not 9"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**OURS | changes)


def test_an_unknown_family_is_refused_and_a_configuration_is_frozen():
    with pytest.raises(ValueError, match="'t5'; choose one of original, bert, gpt2, llama, qwen3"):
        TransformerConfig.of("t5", **OURS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TransformerConfig(**OURS).d_model = 64


@pytest.mark.parametrize("shape", SHAPES)
def test_no_tokens_and_too_many_are_refused(shape):
    model = shape(TransformerConfig(**OURS))
    full, over, none = (torch.zeros(2, n, dtype=torch.long) for n in (64, 65, 0))
    source = [full] if shape is EncoderDecoder else []
    model(*source, full)
    for ids, message in ((none, "input_ids is empty"), (over, r"65 tokens .* 64 positions")):
        with pytest.raises(ValueError, match=message):
            model(*source, ids)
        if source:
            with pytest.raises(ValueError, match=message):
                model(ids, full)


def test_the_tokens_in_the_cache_count_too():
    model = Decoder(TransformerConfig.of("llama", **OURS)).requires_grad_(False)
    cache, ids = KeyValueCache(model.config, 1, 70), torch.zeros(1, 60, dtype=torch.long)
    model(ids, cache=cache)
    with pytest.raises(ValueError, match=r"65 tokens .* 64 positions"):
        model(ids[:, :5], cache=cache)
    assert model(ids[:, :4], cache=cache).shape == (1, 4, 97)


def test_initial_weights_are_small_and_biases_0():
    config = TransformerConfig(**OURS | {"vocab_size": 2000})
    tied, untied = Decoder(config), Decoder(dataclasses.replace(config, tied=False))
    assert tied.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not any(p.any() for name, p in tied.named_parameters() if name.endswith("bias"))
    assert tied.head.weight is tied.embedding.weight
    assert not untied.head.weight.equal(untied.embedding.weight)


@pytest.mark.slow
def test_the_real_decoders_logits_and_tokens(decoder):
    text = "The capital of France is Paris. The capital of Italy is"
    ids = decoder[1](text, return_tensors="pt")["input_ids"]
    model = Decoder.from_pretrained("SmolLM2-135M-Instruct-q4_1", dtype="fp32", device="cpu")
    reference = models.load_decoder("SmolLM2-135M-Instruct-q4_1", dtype="fp32", device="cpu")
    with torch.no_grad():
        assert difference(model(ids), reference(ids).logits) <= 1e-3
        expected = reference.generate(ids, max_new_tokens=16, min_new_tokens=16, do_sample=False)
    assert generate(model, ids, max_new_tokens=16).equal(expected)
