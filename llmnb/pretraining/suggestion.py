"""Before a run: which size, learning rate and number of tokens suit a text and this machine."""

from dataclasses import dataclass, replace

from llmnb.pretraining.loop import Trainer
from llmnb.pretraining.recipe import PretrainingError, Recipe
from llmnb.pretraining.tokens import TokenCorpus

# Widths and layers, from small to large; a head is 16 to 64 wide.
SHAPES = ((32, 2), (48, 2), (64, 2), (96, 3), (128, 4), (192, 4), (256, 6), (384, 6), (512, 8))
# Repeated up to four times, a text is nearly as good as new: Muennighoff et al. 2023.
MAX_EPOCHS = 4


@dataclass(frozen=True)
class Suggestion:
    """A recipe for a text and a machine, and what it rests on."""

    recipe: Recipe
    n_parameters: int
    n_matrix_weights: int  # without the embedding, which is only looked up
    tokens_per_second: float  # measured here, with this size
    epochs: float  # how often the text is read

    def __str__(self) -> str:
        recipe = self.recipe
        minutes = recipe.tokens / self.tokens_per_second / 60
        return (
            f"-p d_model {recipe.d_model} -p n_layers {recipe.n_layers} -p n_heads "
            f"{recipe.n_heads} -p tokens {recipe.tokens}\n{self.n_parameters:,} parameters, rate "
            f"{recipe.lr:.2g}; {recipe.tokens / self.n_matrix_weights:.1f} tokens for every weight "
            f"of a matrix;\nthe text is read {self.epochs:.1f} times; about {minutes:.1f} minutes "
            f"at {self.tokens_per_second:,.0f} tokens a second"
        )


def learning_rate_for(d_model: int) -> float:
    """AdamW's rate beside Muon: 0.016 up to a width of 192, then falling with its square root.

    0.016 was the best of 0.008, 0.016 and 0.032 for our recipe (benchmarks/pretraining.py); that
    a wider model wants a lower rate is from Yang et al. 2022, the exponent is a compromise.
    """
    return 0.016 * min(1.0, 192 / d_model) ** 0.5


def suggest(
    corpus: TokenCorpus, minutes: float, block_size: int = 128, tokens_per_weight: float = 10.0
) -> Suggestion:
    """The largest model that these minutes and this text can feed enough tokens.

    Every size is timed here for a few steps, from the smallest on. Its tokens are as many as this
    machine reads in the minutes, but at most MAX_EPOCHS times the text. tokens_per_weight: how many
    are enough for every weight of a matrix; the default is half of the 20 of Hoffmann et al. 2022,
    because small models use the hardware inefficiently. If even the smallest size gets fewer, it is
    suggested all the same. Raises PretrainingError for a number that is not above 0, DataError for
    too short a text.
    """
    for name, value in (("minutes", minutes), ("tokens_per_weight", tokens_per_weight)):
        if not value > 0:
            raise PretrainingError(f"{name} is {value}; it must be above 0.")
    best = None
    for d_model, n_layers in SHAPES:
        sizes = {"d_model": d_model, "n_layers": n_layers, "n_heads": max(2, d_model // 64)}
        recipe = Recipe(**sizes, block_size=block_size, model={"tied": False}, tokens=10**9)
        recipe = replace(recipe, lr=learning_rate_for(d_model))
        trainer = Trainer(corpus, recipe)
        speed = recipe.step_tokens / trainer.seconds_per_step()
        reachable = int(min(60 * minutes * speed, MAX_EPOCHS * len(corpus.train)))
        tokens = max(reachable, recipe.step_tokens)
        n_weights = trainer.n_parameters - trainer.model.embedding.weight.numel()
        if best and tokens < tokens_per_weight * n_weights:
            break
        recipe = replace(recipe, tokens=tokens)
        epochs = tokens / len(corpus.train)
        best = Suggestion(recipe, trainer.n_parameters, n_weights, speed, epochs)
    return best
