"""Models by name: found in a folder or the Hub's cache, and loaded only if whole and safe."""

import pytest
import torch
import transformers
from conftest import python
from safetensors.torch import load_file, save_file

from llmnb import LlmnbError, fast_linear, models
from llmnb.assets import AssetError
from llmnb.transformer import Decoder


@pytest.fixture
def model():
    """A tiny GPT-2."""
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=8)
    return transformers.GPT2LMHeadModel(config)


def test_a_local_folder_loads_and_pickled_weights_do_not(model, tmp_path):
    with pytest.raises(AssetError, match="no config"):
        models.locate(str(tmp_path))
    model.save_pretrained(tmp_path)
    loaded = models.load_decoder(str(tmp_path), dtype="fp32", device="cpu")
    assert torch.equal(loaded.transformer.wte.weight, model.transformer.wte.weight)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(AssetError, match="safetensors"):
        models.load_decoder(str(tmp_path))


def test_a_checkpoint_with_missing_or_broken_weights_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights.pop("transformer.h.0.attn.c_attn.weight")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(AssetError, match="1 weights are not in its files"):
        models.load_decoder(str(tmp_path))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(AssetError, match="can't be loaded"):
        models.load_decoder(str(tmp_path))


def test_a_model_of_the_wrong_kind_is_refused(tiny_models):
    with pytest.raises(AssetError, match="it is BertModel, but a decoder is wanted"):
        models.load_decoder(str(tiny_models / "encoder"))
    with pytest.raises(AssetError, match="it is LlamaForCausalLM, but an encoder is wanted"):
        models.load_encoder(str(tiny_models / "decoder"))
    with pytest.raises(AssetError, match="weights are not in its files"):
        models.load_masked(str(tiny_models / "encoder"))


def test_a_model_in_the_hubs_cache_loads_offline_and_another_is_not_found(model, tmp_path):
    snapshot = tmp_path / "hub/models--me--tiny/snapshots/0123456789abcdef0123456789abcdef01234567"
    model.save_pretrained(snapshot)
    refs = tmp_path / "hub/models--me--tiny/refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(snapshot.name)
    code = "from llmnb import models; print(type(models.load_decoder('me/tiny', 'fp32')).__name__)"
    result = python(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert result.stdout == "GPT2LMHeadModel\n", result.stderr
    result = python(code.replace("me/", "you/"), HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert "no known asset and no folder here" in result.stderr
    assert "profile 'cpu' runs" in result.stderr


def test_an_unknown_precision_is_not_blamed_on_the_weights(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)
    monkeypatch.setenv("LLMNB_DTYPE", "bf15")
    with pytest.raises(LlmnbError, match=r"^LLMNB_DTYPE='bf15' is unknown; choose one"):
        models.load_decoder(str(tmp_path))


def test_an_error_without_a_text_is_reported_by_its_name(tmp_path, monkeypatch):
    loading = models.load_errors("a model", tmp_path)
    with pytest.raises(AssetError, match="can't be loaded: RuntimeError Weights"), loading:
        raise RuntimeError

    def fail(*arguments):
        raise NotImplementedError

    monkeypatch.setattr(fast_linear, "PackedLinear", fail)
    assert fast_linear.unavailable("bf16") == "NotImplementedError"


@pytest.mark.parametrize("is_large", [True, False])
def test_a_model_that_overflows_in_fp16_runs_in_fp32_and_says_so(model, tmp_path, capsys, is_large):
    with torch.no_grad():
        if is_large:
            model.transformer.h[0].mlp.c_proj.bias.fill_(1e5)  # fp16 ends at 65,504
    model.save_pretrained(tmp_path)
    for load in (models.load_decoder, Decoder.from_pretrained):
        loaded = load(str(tmp_path), dtype="fp16", device="cpu")
        weight = next(loaded.parameters())
        assert weight.dtype == (torch.float32 if is_large else torch.float16)
        assert ("overflows in fp16" in capsys.readouterr().out) == is_large
        ids = torch.tensor([[1, 2, 3]])
        output = loaded(ids)
        logits = output if isinstance(output, torch.Tensor) else output.logits
        assert torch.isfinite(logits).all()
