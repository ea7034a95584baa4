"""What is published: transformers loads it, tokenizer and all, and computes the same."""

import re

import pytest
import torch
import transformers
import yaml
from conftest import small
from test_checkpoints import scramble

from llmnb import checkpoints
from llmnb.card import CardError
from llmnb.pretraining.checkpoint import check_publishable, publish
from llmnb.pretraining.loop import Trainer
from llmnb.pretraining.recipe import PretrainingError
from llmnb.transformer import Decoder, Encoder

# No setting has its family's usual value, so each must be written.
ROTARY = {"n_kv_heads": 1, "head_dim": 12, "rope_theta": 300.0, "norm_eps": 0.01}
MODELS = {
    "qwen3": {"family": "qwen3"},
    "qwen3, changed": {"family": "qwen3", "model": ROTARY | {"tied": False}},
    "llama, changed": {"family": "llama", "model": ROTARY | {"tied": True}},
    "gpt2, changed": {"family": "gpt2", "model": {"tied": False, "norm_eps": 0.01}, "d_ff": 40},
    "bert, changed": {"objective": "masked", "model": {"n_token_types": 3, "norm_eps": 0.01}},
}


def trained(corpus, **changes):
    trainer = Trainer(corpus, small(tokens=3 * 8 * 16, n_layers=2, **changes))
    trainer.run()
    return trainer


@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same(name, corpus, tmp_path):
    trainer = trained(corpus, **MODELS[name])
    scramble(trainer.model)  # three steps would leave too much near zero
    family, folder = name.split(",")[0], tmp_path / "model"
    assert publish(trainer, str(folder), "sentences") == folder
    architecture = getattr(transformers, checkpoints.ARCHITECTURES[family])
    loaded, info = architecture.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    loaded.to(trainer.device)
    assert loaded.config.eos_token_id == corpus.tokenizer.eos_token_id == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    backends = [own.backend_tokenizer.to_str() for own in (tokenizer, corpus.tokenizer)]
    assert backends[0] == backends[1]
    assert tokenizer.special_tokens_map == corpus.tokenizer.special_tokens_map
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(corpus.tokenizer), (3, 16), generator=generator).to(trainer.device)
    with torch.no_grad():
        ours = trainer.model(ids)
        assert ours.std() > 0.3 and (ours - loaded(ids).logits).abs().max() <= 1e-5
        model, shape = trainer.model, Decoder
        if family == "bert":
            model, shape = model.encoder, Encoder
        again = shape.from_pretrained(str(folder), dtype="fp32")(ids)
        assert (model(ids) - again).abs().max() <= 1e-5


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_the_card_is_true_and_its_code_runs(objective, corpus, tmp_path, monkeypatch):
    trainer = trained(corpus, objective=objective)
    folder = publish(trainer, tmp_path / "my-model", "texts {of} mine")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"[{}].*[{}]", card) == ["{of}"]
    _, head, body = card.split("---\n", 2)
    task = {"causal": "text-generation", "masked": "fill-mask"}[objective]
    assert yaml.safe_load(head) == {"library_name": "transformers", "pipeline_tag": task}
    loss = trainer.log[-1]["validation_loss"]
    assert f"{loss:.4f} nats per {'' if objective == 'causal' else 'hidden '}token" in body
    bits = loss / 0.6931471805599453 / corpus.bytes_per_token
    assert (f"{bits:.4f} bits per byte" in body) == (objective == "causal")
    assert f"{trainer.n_parameters:,} parameters" in body and "384 tokens" in body
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(re.search(r"```python\n(.*?)```", body, re.S)[1], namespace)
    assert namespace["model"].num_parameters() == trainer.n_parameters
    assert len(namespace["tokenizer"]) == len(corpus.tokenizer)


def test_a_folder_with_other_files_is_left_alone(corpus, tmp_path):
    trainer = trained(corpus)
    (tmp_path / "thesis.txt").write_text("precious")
    for function, argument in ((publish, trainer), (check_publishable, trainer.recipe)):
        with pytest.raises(CardError, match="holds other files; name an empty folder"):
            function(argument, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"norm": "layer"}}, "Its norm is 'layer': Qwen3ForCausalLM can't express"),
        ({"family": "gpt2", "model": {"n_kv_heads": 1}}, r"Its heads are \(2, 1, 8\): GPT2LMHead"),
        ({"family": "original"}, "Its family is None"),
        ({"objective": "masked", "model": {"n_token_types": 0}}, "Its n_token_types is 0: BertFor"),
    ],
)
def test_a_model_that_the_family_can_not_express_is_refused(changes, message, corpus, tmp_path):
    trainer = trained(corpus, **changes)
    with pytest.raises(PretrainingError, match=f"can't be published: {message}"):
        publish(trainer, tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        checkpoints.save(trainer.model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
