"""Which precision: explicit wins over the environment, which wins over the device's best."""

import pytest
import torch

from llmnb import LlmnbError, hardware


def test_torch_says_whether_there_is_cuda():
    assert hardware.has_cuda() == torch.cuda.is_available()


def test_the_dtype_depends_on_device_speed_and_environment(monkeypatch, cache):
    monkeypatch.delenv("LLMNB_DTYPE", raising=False)
    assert hardware.dtype("fp16") is torch.float16
    assert hardware.dtype("auto", device_type="mps") is torch.float32
    monkeypatch.setattr(hardware, "bf16_speedup", lambda: 1.9)
    assert hardware.dtype("auto", device_type="cpu") is torch.bfloat16
    monkeypatch.setattr(hardware, "bf16_speedup", lambda: 0.4)
    assert hardware.dtype("auto", device_type="cpu") is torch.float32
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert hardware.dtype("auto", device_type="cuda") is torch.float16  # a T4
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert hardware.dtype("auto", device_type="cuda") is torch.bfloat16
    monkeypatch.setenv("LLMNB_DTYPE", "fp32")
    assert hardware.dtype("auto", device_type="cuda") is torch.float32
    with pytest.raises(LlmnbError, match=r"^dtype='int3' is unknown.*bf16, fp16, fp32"):
        hardware.dtype("int3")
    monkeypatch.setenv("LLMNB_DTYPE", "bf15")
    with pytest.raises(LlmnbError, match=r"^LLMNB_DTYPE='bf15' is unknown"):
        hardware.dtype()


def test_the_probe_is_stored(cache):
    first = hardware.bf16_speedup()
    assert first > 0 and hardware.bf16_speedup() == first
    (probe,) = cache.rglob("probe.json")
    assert str(first) in probe.read_text()
