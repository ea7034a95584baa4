"""Generation, one text at a time: llmnb's decoder against transformers' generate, same weights.

Rows: every form of the weights, with tokens per second, the limit that memory sets, and what its
rounding costs in perplexity on film reviews, computed with the products that generation uses. The
headline is bf16 against bf16.
"""

import math
import statistics

import torch
import torch.nn.functional as F
from _common import finish, options, pairs, seconds, summary

from llmnb import concepts, data, fast_linear, generation, models, transformer

NAME = "SmolLM2-135M-Instruct-q4_1"
PROMPT = "The best films are the ones that"


def bandwidth() -> float:
    """Bytes per second at which this machine reads memory: the best of 7 sums over 512 MiB."""
    block = torch.ones(128 * 2**20)
    block.sum()
    return block.numel() * 4 / min(seconds(block.sum) for _ in range(7))


def perplexity(model, tokenizer, blocks: list[str]) -> float:
    """Over all tokens; packed decoders use their products for few rows throughout."""
    nats = tokens = 0.0
    start = concepts.start_token(tokenizer)
    for block in blocks:
        ids = torch.tensor([[start, *tokenizer(block, add_special_tokens=False)["input_ids"]]])
        with torch.inference_mode():
            logits = model(ids[:, :-1])
        nats += F.cross_entropy(logits[0].float(), ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    return math.exp(nats / tokens)


def best_reference(ids: torch.Tensor, n: int):
    """transformers' generate in bf16 with the fastest attention and cache it has here."""
    candidates = []
    for attention in ("sdpa", "eager"):
        for cache in ("dynamic", "static"):
            model = models.load_decoder(NAME, dtype="bf16")
            model.set_attn_implementation(attention)
            chosen = {"do_sample": False, "min_new_tokens": n, "max_new_tokens": n}
            chosen |= {"attention_mask": torch.ones_like(ids), "cache_implementation": cache}
            chosen |= {"disable_compile": True}  # compiling takes longer than all of this

            def run(model=model, chosen=chosen):
                return model.generate(ids, **chosen)

            run()
            took = min(seconds(run) for _ in range(2))
            print(f"transformers, {attention}, {cache} cache: {n / took:.1f} tokens/s")
            candidates.append((took, f"{attention}, {cache} cache", model, run))
    _, name, model, run = min(candidates, key=lambda candidate: candidate[0])
    return name, model, run


def prefill(model, reference, ids: torch.Tensor, n_pairs: int) -> list[tuple[float, float]]:
    """Reading a prompt into a cache, and the scores of the next token."""

    def ours():
        with torch.inference_mode():
            cache = generation.KeyValueCache(model.config, 1, 640, model.embedding.weight)
            return model(ids, cache=cache, last_only=True)

    def theirs():
        with torch.inference_mode():
            return reference(ids, use_cache=True, logits_to_keep=1)

    return pairs(ours, theirs, n_pairs)


def row(name: str, timed, n: int, losses: dict[str, float]) -> dict:
    """One line of the table, printed and kept."""
    ratios = sorted(theirs / ours for ours, theirs in timed)
    result = {
        "name": name,
        "tokens_per_second": round(n / statistics.median(ours for ours, _ in timed), 1),
        "times_as_fast": round(statistics.median(ratios), 3),
        "low": round(ratios[0], 3),
        "high": round(ratios[-1], 3),
    }
    if name in losses:
        result["perplexity_loss_percent"] = round(100 * (losses[name] / losses["fp32"] - 1), 3)
    print(result)
    return result


def main() -> None:
    """Perplexities, then races of interleaved pairs, then prefill."""
    chosen = options(__doc__)
    n, n_pairs = (32, 3) if chosen.quick else (128, 7)
    tokenizer = models.load_tokenizer(NAME)
    ids = torch.tensor([tokenizer(PROMPT, add_special_tokens=False)["input_ids"]])
    blocks = data.first_blocks(data.load_reviews("imdb")["test"], 4 if chosen.quick else 48)
    decoders = {"fp32": transformer.Decoder.from_pretrained(NAME, dtype="fp32")}
    plain = transformer.Decoder.from_pretrained(NAME, dtype="bf16")
    decoders["plain bf16"] = fast_linear.optimize_for_cpu(plain)
    for kind in fast_linear.KINDS:
        fresh = transformer.Decoder.from_pretrained(NAME, dtype="bf16")
        decoders[kind] = fast_linear.pack(fresh, kind)
    max_small_rows = fast_linear.MAX_SMALL_ROWS
    fast_linear.MAX_SMALL_ROWS = 1_000_000
    losses = {name: perplexity(model, tokenizer, blocks) for name, model in decoders.items()}
    fast_linear.MAX_SMALL_ROWS = max_small_rows
    name, reference, generate = best_reference(ids, n)
    rows = [{"name": f"reference: transformers bf16, {name}", "memory_GB_per_s": bandwidth() / 1e9}]
    races = {}
    for kind in ("plain bf16", "bf16", "int8", "int4"):
        model = decoders[kind]
        races[kind] = pairs(
            lambda model=model: generation.generate(model, ids, max_new_tokens=n), generate, n_pairs
        )
        rows.append(row(kind, races[kind], n, losses))
    long = torch.randint(0, 49_152, (1, 512), generator=torch.Generator().manual_seed(0))
    for kind in ("plain bf16", "bf16", "int4"):
        timed = prefill(decoders[kind], reference, long, n_pairs)
        rows.append(row(f"prefill of 512 tokens, {kind}", timed, 512, losses))
    finish(summary("generation", races["bf16"], 0.5, rows), chosen.json)


if __name__ == "__main__":
    main()
