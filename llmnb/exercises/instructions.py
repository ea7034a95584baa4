"""The exercises of notebook 04a."""

import torch
import torch.nn.functional as F

from llmnb.exercises import check

IGNORED = -100  # as transformers' losses have it


def check_labels(attempt) -> str:
    """Exercise 1: attempt(ids, n_prompt, n_tokens), the labels: IGNORED where no answer is."""

    def labels(early=0, late=0, keep_padding=False, keep_prompt=False, shift=0):
        def masked(ids, n_prompt, n_tokens):
            position = torch.arange(ids.shape[1])
            is_answer = torch.ones_like(ids, dtype=torch.bool)
            if not keep_prompt:
                is_answer &= position >= n_prompt[:, None] - early
            if not keep_padding:
                is_answer &= position < n_tokens[:, None] - late
            result = ids.masked_fill(~is_answer, IGNORED)
            return result.roll(-shift, 1) if shift else result

        return masked

    mistakes = {
        "The prompt counts too: ignore its first n_prompt tokens.": labels(keep_prompt=True),
        "The padding counts too: a row has n_tokens tokens, the rest is padding.": labels(
            keep_padding=True
        ),
        "The last token of the prompt counts: the answer begins at n_prompt.": labels(early=1),
        "The first token of the answer is ignored: it begins at n_prompt.": labels(early=-1),
        "The end of the turn is ignored: without it the model never learns to stop.": labels(
            late=1
        ),
        "You shift the labels: transformers' loss does that itself.": labels(shift=1),
    }
    ids = torch.arange(1, 25).view(3, 8)
    cases = [
        (ids, torch.tensor([2, 5, 3]), torch.tensor([6, 8, 5])),
        (ids[:1], torch.tensor([1]), torch.tensor([7])),
    ]
    return check(attempt, labels(), cases, mistakes)


def check_dpo(attempt) -> str:
    """Exercise 2: attempt(policy, reference, beta), the loss; (pairs, 2) each, the better first."""

    def loss(sign=1, with_reference=1, outside=False, end=lambda x: -F.logsigmoid(x), total="mean"):
        def of_pairs(policy, reference, beta):
            ratio = policy - with_reference * reference
            margin = sign * (ratio[:, 0] - ratio[:, 1])
            losses = beta * end(margin) if outside else end(beta * margin)
            return getattr(losses, total)()

        return of_pairs

    mistakes = {
        "The reference is missing: subtract its log-probabilities.": loss(with_reference=0),
        "You add the reference: divide by its probability, so subtract its logarithm.": loss(
            with_reference=-1
        ),
        "Better and worse are swapped: this would teach the worse answers.": loss(sign=-1),
        "β is outside: it stands inside of σ.": loss(outside=True),
        "The logarithm is missing: that is -σ(…).": loss(end=lambda x: -torch.sigmoid(x)),
        "The sign: the loss is -log σ(…).": loss(end=F.logsigmoid),
        "That is the margin itself: take -log σ of it.": loss(end=lambda x: -x),
        "That is the sum: take the mean over the pairs.": loss(total="sum"),
    }
    numbers = torch.Generator().manual_seed(0)
    cases = []
    for n_pairs, beta in ((4, 0.1), (2, 0.7)):
        policy, reference = (-5 * torch.rand(n_pairs, 2, generator=numbers) for _ in range(2))
        cases.append((policy, reference, beta))
    return check(attempt, loss(), cases, mistakes)


def check_leaks(attempt) -> str:
    """Exercise 3: attempt(train, test), the numbers of the test prompts that are in train too."""

    def squeezed(text):
        return " ".join(text.casefold().split())

    def leaks(normal=squeezed, whole=True, swapped=False):
        def numbers(train, test):
            if swapped:
                train, test = test, train
            known = [normal(text) for text in train]
            if whole:
                return [n for n, text in enumerate(test) if normal(text) in known]
            return [n for n, text in enumerate(test) if any(normal(text) in k for k in known)]

        return numbers

    mistakes = {
        "Only exact copies: another case or spacing is the same prompt.": leaks(lambda text: text),
        "You ignore case, but not white space.": leaks(str.casefold),
        "You ignore white space, but not case.": leaks(lambda text: " ".join(text.split())),
        "Those are numbers of training prompts: return the test's.": leaks(swapped=True),
        "A prompt that is a part of another is no copy: compare whole ones.": leaks(whole=False),
    }
    train = ["When do you open today?", "Cancel it", " Two lamps,  please", "Where is my order?"]
    test = [
        "Do you open?",
        "cancel  it",
        "Where is it?",
        "TWO lamps, please",
        "Cancel",
        "two lamps",
    ]
    more = ["a", "B", "c  d", "e"]
    cases = [(train, [*test, "Where is my order?"]), (more, ["x", "e", "C d", "b", "c D", "e "])]
    return check(attempt, leaks(), cases, mistakes)
