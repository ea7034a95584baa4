"""The registry: its names, and that its real models load."""

import pytest

from llmnb import assets


def test_an_unknown_name_gets_the_nearest_known_one():
    with pytest.raises(assets.AssetError, match="Did you mean 'all-MiniLM-L6-v2'"):
        assets.fetch("all-minilm-l6-v2")


@pytest.mark.slow
def test_the_real_assets_load(decoder, encoder):
    model, tokenizer = decoder
    assert not model.training and model.num_parameters() == 134_515_008
    inputs = tokenizer("The capital of France is", return_tensors="pt").to(model.device)
    answer = model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1:]
    assert tokenizer.decode(answer) == " Paris"
    bert, wordpiece = encoder
    assert type(bert).__name__ == "BertModel" and wordpiece.vocab_size == 30522
