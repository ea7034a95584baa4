"""Zero- and few-shot: a prompt's tokens and scores, on tiny random decoders."""

import shutil

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from llmnb.fine_tuning import FineTuningError, Settings
from llmnb.fine_tuning.prompting import Prompted

LABELS = ("bad", "good")


@pytest.fixture(scope="module")
def decoders(tiny_models, tmp_path_factory):
    """The tiny decoder; and one whose tokenizer reads two line ends as one token, as GPT-2's does.

    But only at the end of a text: before a word, the second line end belongs to the word.
    """
    folder = shutil.copytree(tiny_models / "decoder", tmp_path_factory.mktemp("models") / "bpe")
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    raw.train_from_iterator(["Text: a good film\nLabel: good\n\n"] * 9, trainer)
    assert len(raw.encode("\n\n").ids) == 1
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.vocab_size = raw.get_vocab_size()
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return {"words": str(tiny_models / "decoder"), "bpe": str(folder)}


@pytest.fixture
def texts(made_up):
    return made_up["train"]["text"][:], np.array(made_up["train"]["label"][:])


def settings(decoder, **changes):
    return Settings(decoder=decoder, dtype="fp32", max_length=32, **changes)


@pytest.mark.parametrize(("decoder", "shots"), [("words", 0), ("words", 2), ("bpe", 0), ("bpe", 1)])
def test_prompts_scored_in_batches_get_the_scores_of_one_plain_pass(
    decoder, shots, decoders, texts, made_up
):
    names = ("bad", "good film", "fine")  # the second has more tokens; the texts differ in length
    classifier = Prompted(names, settings(decoders[decoder], shots=shots)).fit(*texts)
    test_texts = [*made_up["test"]["text"][:20], "c :) !"]
    expected = np.zeros((len(test_texts), 3))
    for row, text in enumerate(test_texts):
        prompt = f"{classifier.instruction}Text: {text}\nLabel:"
        n_prompt = len(classifier.tokenizer(prompt)["input_ids"])
        for column, name in enumerate(names):
            ids = classifier.tokenizer(f"{prompt} {name}", return_tensors="pt")["input_ids"]
            ids = ids.to(classifier.model.embedding.weight.device)
            with torch.inference_mode():
                log_probs = classifier.model(ids)[0].log_softmax(-1)
            for position in range(n_prompt, ids.shape[1]):
                expected[row, column] += log_probs[position - 1, ids[0, position]].item()
    assert classifier.instruction.count("Label:") == 2 * shots
    expected = np.exp(expected - classifier.usual)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(classifier.probabilities(test_texts), expected, atol=1e-5)


def test_of_a_long_text_the_beginning_is_read(decoders, texts):
    classifier = Prompted(LABELS, settings(decoders["words"])).fit(*texts)
    beginning, rest = "a good b c " * 8, "bad bad bad"  # 32 tokens, and more
    expected = classifier.probabilities([beginning])
    np.testing.assert_allclose(classifier.probabilities([beginning + rest]), expected, atol=1e-6)


def test_a_prompt_too_long_is_refused(decoders, texts):
    with pytest.raises(FineTuningError, match="lower shots or max_length"):
        Prompted(LABELS, settings(decoders["words"], shots=40)).fit(*texts)


def test_a_second_fit_forgets_the_first(decoders, texts):
    rows, labels = texts
    classifier = Prompted(LABELS, settings(decoders["words"])).fit(rows, labels)
    classifier.fit(rows[::-1], labels[::-1])
    expected = Prompted(LABELS, classifier.settings).fit(rows[::-1], labels[::-1])
    assert classifier.instruction == expected.instruction
    np.testing.assert_allclose(
        classifier.probabilities(rows[:5]), expected.probabilities(rows[:5]), atol=1e-6
    )
