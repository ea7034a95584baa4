"""Recipes, optimizers, objectives, against torch's Muon and transformers' losses."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import SMALL, small
from test_attention import difference
from test_checkpoints import scramble
from torch import nn

from llmnb import checkpoints
from llmnb.pretraining import objectives
from llmnb.pretraining.optimizers import Muon, learning_rate, optimizers_for, orthogonalized
from llmnb.pretraining.recipe import BASELINE, PretrainingError, Recipe
from llmnb.transformer import Decoder

MATRICES = [(16, 16), (8, 32), (32, 8), (1, 8), (8, 32), (24, 40)]


def recipe(family, **changes):
    return small(family=family, objective="masked" if family == "bert" else "causal", **changes)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Optimizers


def test_muon_is_torchs():
    ours, theirs = ([nn.Parameter(random(*shape)) for shape in MATRICES] for _ in range(2))
    settings = {"lr": 0.02, "weight_decay": 0.3}
    both = Muon(ours, **settings), torch.optim.Muon(theirs, **settings, adjust_lr_fn="original")
    for step in range(6):
        for parameters, optimizer in zip((ours, theirs), both, strict=True):
            optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 10)  # as a schedule does
            for number, parameter in enumerate(parameters[:-1]):  # the last has no gradient
                parameter.grad = random(*parameter.shape, seed=100 * step + number)
            optimizer.step()
    for one, other, shape in zip(ours[:-1], theirs, MATRICES, strict=False):
        change = difference(other, random(*shape))
        assert change > 0.01 and difference(one, other) <= 0.01 * change  # bf16 has 8 bits
    assert ours[-1].equal(random(*MATRICES[-1]))


def test_muon_refuses_a_vector():
    with pytest.raises(ValueError, match=r"matrices; there is a parameter of shape \(4,\)"):
        Muon([nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(4))])


@pytest.mark.parametrize(
    ("shape", "dtype"), [((3, 16, 64), torch.bfloat16), ((2, 64, 16), torch.float32)]
)
def test_singular_values_are_brought_near_one(shape, dtype):
    matrices = random(*shape)
    result = orthogonalized(matrices.to(dtype)).float()
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6 and values.max() < 1.3
    assert torch.linalg.svdvals(matrices).max() > 4  # which they were not
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert F.cosine_similarity((left @ right).flatten(1), result.flatten(1)).min() > 0.97
    alone = orthogonalized(matrices[:1].to(dtype)).float()
    assert difference(alone, result[:1]) <= (1e-5 if dtype == torch.float32 else 0.02)
    assert orthogonalized(torch.zeros(2, 3, 4)).equal(torch.zeros(2, 3, 4))


@pytest.mark.parametrize(
    ("family", "kind"), [("qwen3", "muon"), ("gpt2", "muon"), ("bert", "adamw")]
)
def test_every_parameter_is_in_one_group(family, kind):
    chosen = recipe(family, optimizer=kind, lr=1e-3, matrix_lr=0.02, weight_decay=0.1)
    model = chosen.build(40)
    settings = {}
    for optimizer in optimizers_for(model, chosen):
        for group in optimizer.param_groups:
            assert group["lr"] == group["initial_lr"]
            facts = (type(optimizer).__name__, group["lr"], group["weight_decay"])
            for parameter in group["params"]:
                assert settings.setdefault(parameter, facts) is facts  # in no other group
    assert settings.keys() == set(model.parameters())
    products = {"query", "key", "value", "output", "gate", "up", "down"}
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2  # norms and biases are vectors
        expected = ("AdamW", 1e-3, 0.1 if is_matrix else 0.0)
        if kind == "muon" and is_matrix and name.split(".")[-2] in products:
            expected = ("Muon", 0.02, 0.1)
        assert settings[parameter] == expected, name


@pytest.mark.parametrize(
    ("step", "steps", "warmup", "decay", "share"),
    [
        (0, 100, 0.1, 0.2, 0.1),
        (9, 100, 0.1, 0.2, 1.0),
        (81, 100, 0.1, 0.2, 0.95),
        (99, 100, 0.1, 0.2, 0.05),
        (0, 100, 0.0, 0.2, 1.0),
        (99, 100, 0.1, 0.0, 1.0),
        (4, 10, 1.0, 1.0, 0.5),
    ],
)
def test_the_learning_rate_rises_stays_and_falls(step, steps, warmup, decay, share):
    assert learning_rate(step, steps, warmup, decay) == pytest.approx(share)


# Objectives


def test_the_masked_loss_is_transformers_and_only_the_hidden_count(tmp_path):
    model = scramble(recipe("bert").build(50))
    checkpoints.save(model, tmp_path)
    reference = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    blocks = torch.randint(2, 50, (4, 16), generator=torch.Generator().manual_seed(1))
    corrupted, positions = objectives.hide(blocks, 1, range(2, 50), [0])
    labels = torch.full_like(blocks, -100).scatter(1, positions, blocks.gather(1, positions))
    loss = objectives.masked_loss(model, blocks, corrupted, positions)
    elsewhere = torch.where(labels == -100, 7, blocks)  # other answers where nobody looks
    assert objectives.masked_loss(model, elsewhere, corrupted, positions) == loss
    their_loss = reference(corrupted, labels=labels).loss
    assert difference(loss, their_loss) <= 1e-5
    loss.backward()
    their_loss.backward()
    theirs = {name: parameter.grad for name, parameter in reference.named_parameters()}
    theirs = checkpoints.renamed("bert", theirs)
    head = reference.cls.predictions
    theirs["head.bias"] = head.bias.grad
    for name, module in [("transform", "dense"), ("transform_norm", "LayerNorm")]:
        for part, parameter in head.transform.get_submodule(module).named_parameters():
            theirs[f"{name}.{part}"] = parameter.grad
    ours = {n.removeprefix("encoder."): p.grad for n, p in model.named_parameters()}
    assert ours.keys() == theirs.keys()
    assert max(difference(ours[name], theirs[name]) for name in ours) <= 1e-5


def test_what_is_hidden_is_berts_fifteen_percent():
    rows, seq = 4000, 40
    blocks = torch.full((rows, seq), 3)
    corrupted, positions = objectives.hide(blocks, 1, range(10, 50), [7])
    hidden, n = torch.zeros_like(blocks).scatter(1, positions, 1).bool(), rows * 6
    assert positions.shape == (rows, 6) and hidden.sum(1).eq(6).all()  # 15 % of each row
    assert blocks.eq(3).all() and corrupted[~hidden].eq(3).all()
    counts = torch.bincount(corrupted[hidden], minlength=50)
    n_masked, n_same, ordinary = counts[1], counts[3], counts[10:]
    assert n_masked + n_same + ordinary.sum() == n
    shares = [(0.8, n_masked), (0.1, n_same)]
    shares += [(0.1 / 40, count) for count in (ordinary.min(), ordinary.max())]
    for share, count in shares:
        assert abs(count - n * share) < 5 * math.sqrt(n * share * (1 - share))
    at_each_position = hidden.sum(0)
    assert (at_each_position - rows * 0.15).abs().max() < 5 * math.sqrt(rows * 0.15 * 0.85)


@pytest.mark.parametrize(("seq", "n"), [(1, 1), (3, 1), (20, 3), (128, 19)])
def test_the_number_hidden_is_the_same_in_every_row_and_the_seed_decides(seq, n):
    blocks = torch.full((50, seq), 9)
    seeds = ([3, 1], [3, 1], [3, 2])
    first, same, other = (objectives.hide(blocks, 1, range(2, 9), seed) for seed in seeds)
    assert first[1].shape == (50, n) and all(len(set(row)) == n for row in first[1].tolist())
    assert all(map(torch.equal, first, same))
    assert not first[0].equal(other[0])


# Recipes


def test_a_recipes_settings_become_the_model():
    sizes = {"d_model": 32, "n_layers": 2, "n_heads": 4}
    model = small(**sizes, model={"n_kv_heads": 2, "tied": False}).build(50)
    config = model.config
    assert isinstance(model, Decoder) and config.family == "qwen3" and not config.tied
    assert (config.vocab_size, config.d_model, config.n_positions) == (50, 32, 16)
    assert (config.n_layers, config.heads) == (2, (4, 2, 8))
    assert config.d_ff == 96  # 8/3 d_model = 85.3, up to a multiple of 16
    assert small(d_ff=40).config(50).d_ff == 40 and small(family="gpt2").config(50).d_ff == 64
    assert small(objective="masked").family == "bert"
    assert json.loads(json.dumps(small().as_dict())) == small().as_dict()


def test_the_seed_decides_the_weights_and_nothing_else_does():
    before = torch.get_rng_state()
    one, same, other = (small(seed=seed).build(50).state_dict() for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(before)
    assert all(one[name].equal(same[name]) for name in one)
    assert not one["embedding.weight"].equal(other["embedding.weight"])


@pytest.mark.parametrize("family", ["qwen3", "bert"])
def test_a_layer_adds_nothing_in_the_beginning(family):
    for zero_init in (True, False):
        model = recipe(family, zero_init=zero_init).build(50)
        zero = {n for n, p in model.named_parameters() if p.dim() == 2 and not p.any()}
        block = "encoder.blocks.0" if family == "bert" else "blocks.0"
        expected = {f"{block}.attention.output.weight", f"{block}.feed_forward.down.weight"}
        assert zero == (expected if zero_init else set())


def test_the_baseline_is_nanogpts():
    assert 0.79e6 < sum(p.numel() for p in BASELINE.build(65).parameters()) < 0.82e6
    assert BASELINE.steps() == 2000 and BASELINE.step_tokens == 12 * 64


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "span"}, "objective is 'span'; choose one of causal, masked"),
        ({"objective": "masked", "family": "gpt2"}, "'gpt2' does not go with objective"),
        ({"block_size": 0}, "block_size is 0; it must be at least 1"),
        ({"accumulation": 3}, "batch_size 8 can't be cut into 3 equal parts"),
        ({"lr": 0.0}, "^lr is 0.0; it must be above 0"),
        ({"warmup": 1.1}, "warmup is 1.1; it must be a share"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it must be at least 0"),
        ({"family": "t5"}, "no such model: family is 't5'; choose one of"),
        ({"model": {"layers": 3}}, "no such model: .*layers"),
        ({"objective": "masked", "model": {"tied": False}}, "tied is False"),
        ({"optimiser": "muon"}, "no setting 'optimiser'. Did you mean 'optimizer'"),
        ({True: 1}, "no setting True"),
        ({"d_model": "wide"}, "d_model is 'wide'; it must be of type int"),
        ({"d_model": True}, "d_model is True; it must be of type int"),
        ({"zero_init": 1}, "zero_init is 1; it must be of type bool"),
        ({"lr": "high"}, "lr is 'high'; it must be of type float"),
        ({"model": "large"}, "model is 'large'; it must be of type dict"),
    ],
)
def test_settings_that_can_not_be_are_named(settings, message):
    with pytest.raises(PretrainingError, match=message):
        Recipe.of(SMALL | settings).build(50)


def test_numbers_as_yaml_gives_them_are_numbers():
    recipe = Recipe.of(SMALL | {"lr": "1e-3", "minutes": 2, "tokens": "1e6"})
    assert recipe.lr == 1e-3 and recipe.tokens == 1_000_000
    assert [type(value) for value in (recipe.minutes, recipe.tokens)] == [float, int]


@pytest.mark.parametrize("budget", [{"tokens": 0}, {"minutes": 1.0}])
def test_a_budget_is_tokens_or_minutes(budget):
    with pytest.raises(PretrainingError, match="budget: either tokens or minutes"):
        small(**budget).steps()
