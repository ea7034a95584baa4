"""The exercises of notebook 04a."""

import torch
import torch.nn.functional as F

from llmnb.exercises import check

IGNORED = -100  # as transformers' losses have it


def check_labels(attempt) -> str:
    """Exercise 1: attempt(ids, n_prompt, n_tokens), the labels: IGNORED where no answer is."""

    def labels(ids, n_prompt, n_tokens, early=0, late=0, shift=0):
        position = torch.arange(ids.shape[1])
        is_answer = position >= n_prompt[:, None] - early
        is_answer &= position < n_tokens[:, None] + late
        return ids.masked_fill(~is_answer, IGNORED).roll(-shift, 1)

    mistakes = {
        "The prompt counts too: ignore its first n_prompt tokens.": {"early": 8},
        "The padding counts too: a row has n_tokens tokens, the rest is padding.": {"late": 8},
        "The last token of the prompt counts: the answer begins at n_prompt.": {"early": 1},
        "The first token of the answer is ignored: it begins at n_prompt.": {"early": -1},
        "The end of the turn is ignored: without it the model never learns to stop.": {"late": -1},
        "You shift the labels: transformers' loss does that itself.": {"shift": 1},
    }
    ids = torch.arange(1, 25).view(3, 8)
    cases = [
        (ids, torch.tensor([2, 5, 3]), torch.tensor([6, 8, 5])),
        (ids[:1], torch.tensor([1]), torch.tensor([7])),
    ]
    return check(attempt, labels, cases, mistakes)


def check_dpo(attempt) -> str:
    """Exercise 2: attempt(policy, reference, beta), the loss; (pairs, 2) each, the better first."""

    def loss(policy, other, beta, sign=1, weight=1, end=lambda x: -F.logsigmoid(x), n=len):
        ratio = policy - weight * other
        margin = sign * (ratio[:, 0] - ratio[:, 1])
        return end(beta * margin).sum() / n(margin)

    mistakes = {
        "The reference is missing: subtract its log-probabilities.": {"weight": 0},
        "You add the reference: divide by its probability, so subtract its logarithm.": {
            "weight": -1
        },
        "Better and worse are swapped: this would teach the worse answers.": {"sign": -1},
        "β belongs inside σ, not in front of the loss.": (
            lambda policy, other, beta: beta * loss(policy, other, 1)
        ),
        "The logarithm is missing: that is -σ(…).": {"end": lambda x: -torch.sigmoid(x)},
        "The sign: the loss is -log σ(…).": {"end": F.logsigmoid},
        "That is the margin itself: take -log σ of it.": {"end": lambda x: -x},
        "That is the sum: take the mean over the pairs.": {"n": lambda margin: 1},
    }
    numbers = torch.Generator().manual_seed(0)
    cases = []
    for n_pairs, beta in ((4, 0.1), (2, 0.7)):
        policy, reference = (-5 * torch.rand(n_pairs, 2, generator=numbers) for _ in range(2))
        cases.append((policy, reference, beta))
    return check(attempt, loss, cases, mistakes)


def check_leaks(attempt) -> str:
    """Exercise 3: attempt(train, test), the numbers of the test prompts that are in train too."""

    def squeezed(text):
        return " ".join(text.casefold().split())

    def leaks(train, test, normal=squeezed, is_copy=str.__eq__):
        known = [normal(text) for text in train]
        return [n for n, text in enumerate(test) if any(is_copy(k, normal(text)) for k in known)]

    mistakes = {
        "Only exact copies: another case or spacing is the same prompt.": {"normal": str},
        "You ignore case, but not white space.": {"normal": str.casefold},
        "You ignore white space, but not case.": {"normal": lambda text: " ".join(text.split())},
        "Those are indices into train: return the indices into test.": lambda *case: leaks(
            *case[::-1]
        ),
        "A prompt that is a part of another is no copy: compare whole ones.": {
            "is_copy": str.__contains__
        },
    }
    train = ["When do you open today?", "Cancel it", " Two lamps,  please", "Where is my order?"]
    test = ["Do you open?", "cancel  it", "Where is it?", "TWO lamps, please", "Cancel"]
    test += ["two lamps", "Where is my order?"]
    more = ["a", "B", "c  d", "e"], ["x", "e", "C d", "b", "c D", "e "]
    return check(attempt, leaks, [(train, test), more], mistakes)
