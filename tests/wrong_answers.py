"""Wrong answers to the notebooks' exercises, as readers write them.

Words of the message that it must get stand beside a wrong answer.
"""

import math
from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, softmax
from sklearn.metrics import f1_score, recall_score

from llmnb.exercises import (
    applications,
    attention,
    concepts,
    evaluation,
    fine_tuning,
    instructions,
    pretraining,
)

# Notebook 01


def top_p(probs, p, by_size=True, normalized=True, back=True):
    order = sorted(range(len(probs)), key=lambda i: -probs[i] if by_size else i)
    nucleus, mass = {}, 0.0
    for i in order:
        if mass < p:
            nucleus[i] = probs[i]
            mass += probs[i]
    indices = range(len(probs)) if back else order
    return [nucleus.get(i, 0) / (mass if normalized else 1) for i in indices]


CONCEPTS = {
    concepts.check_bigram: [
        (lambda n, a, b: n.get((a, b), 0) / sum(n.values()), "among all pairs"),
        (lambda n, a, b: n.get((a, b), 0), "a count, not yet a probability"),
        (lambda n, a, b: n.get((a, b), 0) / sum(pair[0] == a for pair in n), "different words"),
    ],
    concepts.check_bits_per_byte: [
        (lambda logs, text: -sum(logs) / math.log(2) / len(text), "divide by characters"),
        (lambda logs, text: -np.mean(logs) / np.log(2), "divide by tokens"),
        (lambda logs, text: sum(logs) / math.log(2) / len(text.encode()), "The sign"),
    ],
    concepts.check_top_p: [
        (lambda probs, p: top_p(probs, p, by_size=False), "sort the tokens"),
        (lambda probs, p: top_p(probs, p, normalized=False), "no longer sum to 1"),
        (lambda probs, p: top_p(probs, p, back=False), "wrong places"),
    ],
}

# Notebook 02


def weights(query, key, scale=None, dim=-1):
    return torch.softmax(query @ key.mT / (scale or query.shape[-1] ** 0.5), dim)


def shared_heads(query, key, value, spread, masked=True):
    key, value = (spread(part, len(query) // len(part)) for part in (key, value))
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if masked:
        scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1)
    return torch.softmax(scores, -1) @ value


def neighbours(heads, n):
    return heads.repeat_interleave(n, 0)


ATTENTION = {
    attention.check_attention: [
        (lambda q, k, v: weights(q, k, scale=1) @ v, "not divided by √d_k"),
        (lambda q, k, v: weights(q, k, dim=0) @ v, "over the queries"),
        (lambda q, k, v: q @ k.T / q.shape[-1] ** 0.5 @ v, "softmax is missing"),
    ],
    attention.check_sliding_mask: [
        (lambda n, w: torch.ones(n, n).tril().triu(-w), "One too many"),
        (lambda n, w: 1 - torch.ones(n, n).tril().triu(1 - w), "other way round"),
        (lambda n, w: torch.ones(n, n).triu().tril(w - 1), "Rows and columns"),
    ],
    attention.check_grouped: [
        (lambda *qkv: shared_heads(*qkv, lambda x, n: x.repeat(n, 1, 1)), "dealt out"),
        (lambda *qkv: shared_heads(*qkv, neighbours, masked=False), "what comes after"),
        (lambda *qkv: torch.cat([*shared_heads(*qkv, neighbours)], -1), "side by side"),
    ],
}

# Notebook 03


def nats(logits, ids):
    return logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]


def schedule(progress, fall=lambda x: 0.5 + 0.5 * np.cos(np.pi * x), first=1):
    def share(t, steps, warmup):
        return (t + first) / warmup if t < warmup else fall(progress(t, steps, warmup))

    return share


def since_warmup(t, steps, warmup):
    return (t - warmup) / (steps - warmup)


def corrupted(ids, chosen, dice, others, mask_id):
    replaced = torch.where(dice < 0.8, mask_id, torch.where(dice < 0.9, others, ids))
    return torch.where(chosen, replaced, ids)


def with_labels(function):
    return lambda *case: (corrupted(*case), function(*case))


def one_tensor(ids, chosen, *rest):
    labels = ids
    labels[~chosen] = -100
    return corrupted(ids, chosen, *rest), labels


PRETRAINING = {
    pretraining.check_loss: [
        (lambda x, ids: F.cross_entropy(x, ids), "No shift"),
        (lambda x, ids: F.cross_entropy(x[1:], ids[:-1]), "Shifted the wrong way"),
        (lambda x, ids: -nats(x, ids).sum() / len(ids), "You divide by seq"),
        (lambda x, ids: F.nll_loss(x[:-1].log_softmax(0), ids[1:]), "over the positions"),
        (lambda x, ids: -x[:-1].gather(1, ids[1:, None]).mean(), "softmax is missing"),
    ],
    pretraining.check_schedule: [
        (schedule(since_warmup, first=0), "Step 0 gets 0"),
        (schedule(lambda t, steps, warmup: t / steps), "starts at step 0"),
        (schedule(since_warmup, lambda x: math.cos(math.pi * x)), "falls to -1"),
    ],
    pretraining.check_corrupt: [
        (lambda i, c, d, o, m: (i.masked_fill(c, m), i.where(c, -100)), "mask all"),
        (one_tensor, "they are one tensor with the labels"),
        (with_labels(lambda i, c, d, *_: i.where(c & (d < 0.8), -100)), "the masks only"),
        (with_labels(lambda i, c, *_: i[c]), "labels: Expected the shape (20,)"),
        (corrupted, "Return two tensors"),
        (lambda *case: 5, "input_ids: Expected the shape (20,), got ()"),
    ],
}

# Notebook 04


def chosen(total=sum, normalize=log_softmax, sign=-1, end=softmax):
    def probabilities(logits, options, usual):
        scores = []
        for rows, ids in zip(logits, options, strict=True):
            terms = [normalize(row)[token] for row, token in zip(rows, ids, strict=True)]
            scores.append(total(terms))
        return end(np.array(scores) + sign * usual)

    return probabilities


FINE_TUNING = {
    fine_tuning.check_macro_f1: [
        (lambda y, p, n: (y == p).mean(), "That is the accuracy"),
        (lambda y, p, n: f1_score(y, p, average="weighted"), "weigh the classes"),
        (lambda y, p, n: recall_score(y, p, average="macro"), "mean recall"),
    ],
    fine_tuning.check_merge: [
        (lambda w, a, b, alpha: w + b @ a, "scale is missing"),
        (lambda w, a, b, alpha: w + alpha / len(a) * (a.T @ b.T), "transposed"),
        (lambda w, a, b, alpha: alpha / len(a) * b @ a, "change alone"),
    ],
    fine_tuning.check_choose: [
        (chosen(sign=0), "scores are missing"),
        (chosen(np.mean), "not the mean"),
        (chosen(normalize=list), "log-softmax is missing"),
    ],
}

# Notebook 04a


def labels(ids, first, last):
    result = torch.full_like(ids, -100)
    for row, (start, end) in enumerate(zip(first, last, strict=True)):
        result[row, start:end] = ids[row, start:end]
    return result


def margins(policy, reference):
    better, worse = (policy - reference).T
    return better - worse


def squeezed(text):
    return " ".join(text.lower().split())


def copies(train, test, normal):
    known = {normal(text) for text in train}
    return [n for n, text in enumerate(test) if normal(text) in known]


INSTRUCTIONS = {
    instructions.check_labels: [
        (lambda ids, prompt, n: labels(ids, 0 * prompt, n), "The prompt counts too"),
        (lambda ids, prompt, n: labels(ids, prompt, n - 1), "never learns to stop"),
        (lambda ids, prompt, n: labels(ids, prompt + 1, n), "first token of the answer"),
    ],
    instructions.check_dpo: [
        (lambda p, r, b: -F.logsigmoid(b * margins(p, 0 * r)).mean(), "The reference is missing"),
        (lambda p, r, b: -F.logsigmoid(-b * margins(p, r)).mean(), "swapped"),
        (lambda p, r, b: F.softplus(-b * margins(p, r)).sum(), "That is the sum"),
    ],
    instructions.check_leaks: [
        (lambda train, test: copies(train, test, str), "Only exact copies"),
        (lambda train, test: copies(test, train, squeezed), "return the indices into test"),
        (lambda train, test: copies(train, test, lambda t: " ".join(t.split())), "but not case"),
    ],
}

# Notebook 05


def f1(p, a, n_common):
    return 2 * n_common / (len(p) + len(a)) if p and a else float(p == a)


def common(p, a):
    return (Counter(p) & Counter(a)).total()


def ends(means, low=2.5):
    return np.percentile(means, [low, 100 - low])


def calibration_error(bins_of, gap=abs, weighted=True):
    def error(confidence, right, n_bins):
        bins = bins_of(confidence, n_bins)
        groups = [bins == number for number in np.unique(bins)]
        gaps = [gap(right[group].mean() - confidence[group].mean()) for group in groups]
        sizes = [group.sum() for group in groups]
        return np.average(gaps, weights=sizes if weighted else None)

    return error


def left_open(confidence, n_bins):
    return np.ceil(confidence * n_bins)


EVALUATION = {
    evaluation.check_token_f1: [
        (lambda p, a: f1(p, a, len(set(p) & set(a))), "as often as they occur"),
        (lambda p, a: f1(p, a, sum(w in a for w in p)), "at most as often"),
        (lambda p, a: common(p, a) / len(p) if p and a else p == a, "the precision"),
    ],
    evaluation.check_paired_interval: [
        (lambda a, b, rows: ends((b[rows] - a[rows]).mean(1)), "B less A"),
        (lambda a, b, rows: ends((a[rows] - b[rows]).mean(1), 5), "2.5 %"),
        (lambda a, b, rows: ends((a[rows] - b[rows]).mean(0)), "over the resamples"),
    ],
    evaluation.check_calibration_error: [
        (calibration_error(left_open, weighted=False), "over the bins"),
        (calibration_error(lambda c, n: (c * n).astype(int).clip(0, n - 1)), "on its left"),
        (lambda c, r, n: abs(c - r).mean(), "single texts"),
    ],
}

# Notebook 06


def hits(rankings, evidence, k):
    return [right in ids[:k] for ids, right in zip(rankings, evidence, strict=True)]


def scores_of(rankings, k, part=lambda k, rank: 1 / (k + rank), start=1):
    parts = {}
    for ranking in rankings:
        for rank, id_ in enumerate(ranking, start):
            parts.setdefault(id_, []).append(part(k, rank))
    return parts


def by_score(parts, sign=-1):
    return sorted(parts, key=lambda id_: (sign * sum(parts[id_]), id_))


def threshold(gain=lambda no, yes: no.mean() - yes.mean(), declined=np.less, step=1):
    def best(scores, answerable):
        levels = np.unique(scores)[::step]
        below = [declined(scores, level) for level in levels]
        gains = [gain(row[~answerable], row[answerable]) for row in below]
        return levels[np.argmax(gains)]

    return best


APPLICATIONS = {
    applications.check_hit_rate: [
        (lambda r, e, k: sum(hits(r, e, k)) / (k * len(r)), "the precision"),
        (lambda r, e, k: sum(hits(r, e, k)) / sum(map(bool, r)), "is a miss"),
        (lambda r, e, k: 1 - np.mean(hits(r, e, k)), "share of misses"),
    ],
    applications.check_fusion: [
        (lambda r, k: by_score(scores_of(r, k), sign=1), "the worst first"),
        (lambda r, k: by_score(scores_of(r, k, start=0)), "ranks begin at 0"),
        (lambda r, k: by_score(scores_of(r, k))[:2], "Expected the shape (4,), got (2,)"),
    ],
    applications.check_threshold: [
        (threshold(step=-1), "take the lowest"),
        (threshold(declined=np.less_equal), "equal to the threshold"),
        (threshold(lambda no, yes: no.sum() - yes.sum()), "of each kind"),
    ],
}
WRONG = CONCEPTS | ATTENTION | PRETRAINING | FINE_TUNING | INSTRUCTIONS
WRONG |= EVALUATION | APPLICATIONS
