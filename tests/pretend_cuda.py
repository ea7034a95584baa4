"""A pretended CUDA device: values come from the CPU, and what CUDA refuses is refused.

`with pretend_cuda.device():` holds in this process; tests/pretended/ on PYTHONPATH makes every
Python that starts compute on it, kernels too. Refusals also go to the file $REFUSALS, if it is set.

It can't show how fast CUDA is, how much memory it takes, or how it rounds. There is one device.
It takes Linux, and what it uses of torch isn't public: a new version of torch may need changes.
"""

import contextlib
import ctypes
import functools
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.utils._device
from pretend_tensor import XLA, CudaTensor, Generator, Mode, unwrapped
from torch import Tensor
from torch.nn import functional

from llmnb import hardware

N_DEVICE_TYPES = 22  # in c10/core/DeviceType.h, which numbers them: 0 is the CPU, 9 is XLA


def translated(function):
    """The function, with the device "cuda" in its arguments replaced by torch's name for ours."""

    def translate(value):
        is_device = isinstance(value, str | torch.device)
        return XLA if is_device and str(value) in ("cuda", "cuda:0") else value

    @functools.wraps(function)
    def call(*args, **kwargs):
        kwargs = {key: translate(value) for key, value in kwargs.items()}
        return function(*map(translate, args), **kwargs)

    return call


def always(value):
    """A function that returns the value, whatever it is called with."""
    return lambda *args, **kwargs: value


STREAM = types.SimpleNamespace(is_capturing=always(False))
BYTES = 80 * 10**9
NAME = "a pretended GPU"
PROPERTIES = types.SimpleNamespace(name=NAME, major=9, minor=0, total_memory=BYTES)
RANDOM_STATE = torch.zeros(16, dtype=torch.uint8)
# What functions of torch.cuda return.
CUDA_FACTS = {"is_available": True, "device_count": 1, "current_device": 0, "memory_allocated": 0}
CUDA_FACTS |= {"get_device_name": NAME, "get_device_capability": (9, 0)}
CUDA_FACTS |= {"get_device_properties": PROPERTIES, "mem_get_info": (BYTES, BYTES)}
CUDA_FACTS |= {"get_rng_state": RANDOM_STATE, "get_rng_state_all": [RANDOM_STATE]}
CUDA_FACTS |= {"is_bf16_supported": True, "is_current_stream_capturing": False}
NOTHING = "_lazy_init synchronize empty_cache reset_peak_memory_stats set_device manual_seed"
CUDA_FACTS |= dict.fromkeys([*NOTHING.split(), "manual_seed_all", "set_rng_state_all"])
CUDA_FACTS |= {"set_rng_state": None, "max_memory_allocated": 0, "memory_reserved": 0}
ACCELERATOR_FACTS = {"is_available": True, "device_count": 1, "current_device_index": 0}
ACCELERATOR_FACTS |= {"current_accelerator": torch.device("cuda"), "current_stream": STREAM}
ACCELERATOR_FACTS |= {"synchronize": None, "set_device_index": None}


def with_swapping(apply):
    """Module._apply, so that to("cuda") keeps every parameter and changes where it is."""

    def call(self, function, recurse=True):
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return apply(self, function, recurse)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)

    return call


def fused(attention):
    """scaled_dot_product_attention by the CPU's fused kernel: like CUDA's, it stores no weights."""

    def call(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
        tensors = (query, key, value)
        is_fused = all(isinstance(tensor, CudaTensor) and tensor.dim() == 4 for tensor in tensors)
        is_fused &= query.shape[-1] == value.shape[-1] and not dropout_p
        if not is_fused or len({tensor.dtype for tensor in tensors}) > 1:
            return attention(*tensors, attn_mask, dropout_p, is_causal, **options)
        if options.get("enable_gqa"):
            repeats = query.shape[1] // key.shape[1]
            key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            zeros = torch.zeros_like(attn_mask, dtype=query.dtype)
            attn_mask = zeros.masked_fill(~attn_mask, -torch.inf)
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        options = {"attn_mask": attn_mask, "scale": options.get("scale")}
        return kernel(query, key, value, 0.0, is_causal, **options)[0]

    return call


def set_device_guard(number: int) -> None:
    """Let torch take the CPU's device guard, which does nothing, for the device type."""
    (library,) = (Path(torch.__file__).parent / "lib").glob("*c10.*")
    symbol = "_ZN3c104impl26device_guard_impl_registryE"  # an array of pointers
    guards = (ctypes.c_void_p * N_DEVICE_TYPES).in_dll(ctypes.CDLL(str(library)), symbol)
    guards[number] = guards[0]


@contextlib.contextmanager
def device() -> Iterator[None]:
    """Pretend that this machine has one CUDA device, until the end of the block."""
    if torch.cuda.is_available():
        raise RuntimeError("This machine has a CUDA device: run `pytest -m gpu` on it instead.")
    set_device_guard(9)
    torch.utils._device._device_constructors()  # torch remembers which functions these are
    numbers, address = Tensor.tolist, Tensor.data_ptr
    with pytest.MonkeyPatch.context() as patch:
        for module, facts in ((torch.cuda, CUDA_FACTS), (torch.accelerator, ACCELERATOR_FACTS)):
            for name, value in facts.items():
                patch.setattr(module, name, always(value))
        for name in ("get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all"):
            patch.setattr(torch.cuda.random, name, getattr(torch.cuda, name))
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(torch.version, "cuda", "12.8")
        patch.setattr(hardware, "has_cuda", always(True))
        for name in ("tensor", "as_tensor", "asarray"):
            patch.setattr(torch, name, translated(getattr(torch, name)))
        patch.setattr(Tensor, "to", translated(Tensor.to))
        patch.setattr(Tensor, "cuda", lambda self, device=None, **options: self.to(XLA, **options))
        patch.setattr(Tensor, "tolist", lambda self: numbers(unwrapped(self)))
        patch.setattr(Tensor, "data_ptr", lambda self: address(unwrapped(self)))
        patch.setattr(Tensor, "pin_memory", lambda self, *_: self)
        sdpa = functional.scaled_dot_product_attention
        patch.setattr(functional, "scaled_dot_product_attention", fused(sdpa))
        patch.setattr(torch.nn.Module, "_apply", with_swapping(torch.nn.Module._apply))
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            with Mode(), torch.autograd.set_multithreading_enabled(False):
                yield
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
