"""Tensors of the pretended CUDA device (pretend_cuda.py), and what they refuse.

A tensor on "cuda:0" is a wrapper around one on the CPU. To Python it says that it is on cuda:0.
To torch's C++ it is on xla:0: a CPU build can record its operations for the backward pass and
autocast them as CUDA's (it can't with tensors on cuda:0, unless it is compiled for CUDA). Each
operator arrives in `run`, which checks it, runs it on the CPU, and wraps what comes out.
"""

import os
import traceback
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

CUDA, XLA = torch.device("cuda:0"), torch.device("xla:0")
AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
SAME_DEVICE = "Expected all tensors to be on the same device, but found at least two devices"
aten = torch.ops.aten


class Refusal(RuntimeError):
    """CUDA would have raised an error here."""


def refuse(message: str, kind: type[Exception] = Refusal) -> None:
    """Raise it; note it with the stack in $REFUSALS, for code that catches exceptions."""
    if path := os.environ.get("REFUSALS"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{message}\n{''.join(traceback.format_stack(limit=20)[:-1])}\n")
    raise kind(message)


class CudaTensor(Tensor):
    """A tensor on the pretended device. `on_cpu` has its values."""

    @staticmethod
    def __new__(cls, on_cpu: Tensor):
        options = {"strides": on_cpu.stride(), "storage_offset": on_cpu.storage_offset()}
        options |= {"dtype": on_cpu.dtype, "layout": on_cpu.layout, "device": XLA}
        options |= {"_extra_dispatch_keys": AUTOCAST}
        return Tensor._make_wrapper_subclass(cls, on_cpu.shape, **options)

    def __init__(self, on_cpu: Tensor) -> None:
        self.on_cpu = on_cpu

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return run(operator, args, kwargs or {})

    def __repr__(self, **_) -> str:
        with _disable_current_modes():
            values = torch._tensor_str._str(self.on_cpu)
        gradient = ", requires_grad=True" if self.requires_grad else ""
        return f"{values[:-1]}, device='cuda:0'{gradient})"

    def __format__(self, format_spec: str) -> str:
        value = self.item() if self.dim() == 0 else repr(self)
        return format(value, format_spec)

    def __reduce_ex__(self, protocol: int):  # saved as a tensor on the CPU
        return self.on_cpu.__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        memo[id(self)] = copied = self.detach().clone().requires_grad_(self.requires_grad)
        return copied

    def numpy(self, *, force: bool = False):
        if not force:
            refuse("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu().", TypeError)
        return self.on_cpu.numpy(force=True)

    def untyped_storage(self):
        return self.on_cpu.untyped_storage()

    @property
    def data(self):
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, CudaTensor):
            refuse("a tensor on the CPU can't become the data of one on the pretended device")
        Tensor.data.__set__(self, value)
        self.on_cpu = value.on_cpu


class Generator(torch._C.Generator):
    """A source of random numbers that knows its device. The numbers are the CPU's."""

    on_cuda: ClassVar[set[int]] = set()  # addresses: operators get new Python objects

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls, "cpu")
        if torch.device(device).type == "cuda":
            cls.on_cuda.add(generator._cdata)
        return generator

    def __init__(self, device="cpu") -> None:
        pass

    def __del__(self) -> None:
        self.on_cuda.discard(self._cdata)

    @property
    def device(self) -> torch.device:
        return CUDA if self._cdata in self.on_cuda else torch.device("cpu")


# In the names of operators that have a kernel for CPUs alone.
CPU_WORDS = ("mkldnn", "onednn", "quantized", "_dyn_quant_", "_for_cpu", "histogram")
COPIES = {"copy_", "_to_copy", "copy", "_copy_from", "_copy_from_and_resize"}
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot", "addbmm", "addmm_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# These take a number that is a tensor on the CPU; so do all pointwise operators.
WITH_NUMBERS = {"where", "masked_fill", "masked_fill_", "fill", "fill_", "clamp", "lerp", "div_"}


def tensors_in(values) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def check(operator, args: tuple, kwargs: dict) -> None:
    """Raise what CUDA raises for a call that has something to do with CUDA."""
    name = operator._schema.name.split("::")[1]
    is_ours = "flash_attention_for_cpu" in name  # see pretend_cuda.fused
    if not is_ours and any(word in operator.name() for word in CPU_WORDS):
        message = f"Could not run '{operator.name()}' with arguments from the 'CUDA' backend."
        refuse(message, NotImplementedError)
    generators = [v for v in (*args, *kwargs.values()) if isinstance(v, torch._C.Generator)]
    if any(generator._cdata not in Generator.on_cuda for generator in generators):
        refuse(f"Expected a 'cuda' device type for generator but found 'cpu' ({name})")
    tensors = [*tensors_in(args), *tensors_in(kwargs.values())]
    if name in COPIES:
        return
    if all(isinstance(tensor, CudaTensor) for tensor in tensors):
        if name in PRODUCTS and not tensors[0].dtype.is_floating_point:
            refuse(f'"{name}_cuda" not implemented for {tensors[0].dtype}')
    elif name in INDEXING:
        check_indexing(name, *args[:3])
    else:
        check_devices(operator, args, kwargs, tensors)


def check_indexing(name: str, indexed: Tensor, indices, values: Tensor | None = None) -> None:
    """Indices may be on the CPU if what they index is on CUDA, and so may be a single value."""
    is_strange = values is not None and values.dim() and not isinstance(values, CudaTensor)
    if not isinstance(indexed, CudaTensor) or is_strange:
        message = "indices should be either on cpu or on the same device as the indexed tensor"
        refuse(f"{message}; {SAME_DEVICE}, cuda:0 and cpu! ({name})")


def check_devices(operator, args: tuple, kwargs: dict, tensors: list[Tensor]) -> None:
    """No tensor may be on the CPU, except numbers where the operator takes them."""
    name = operator._schema.name.split("::")[1]
    takes_numbers = torch.Tag.pointwise in operator.tags or name.startswith("_foreach")
    takes_numbers |= name in WITH_NUMBERS
    written = {id(kwargs[key]) for key in ("out", "grad_input") if key in kwargs}
    for argument, value in zip(operator._schema.arguments, args):  # noqa: B905
        if argument.alias_info and argument.alias_info.is_write:
            written |= {id(tensor) for tensor in tensors_in([value])}
    for tensor in tensors:
        is_number = takes_numbers and tensor.dim() == 0 and id(tensor) not in written
        if not isinstance(tensor, CudaTensor) and not is_number:
            shape = tuple(tensor.shape)
            refuse(f"{SAME_DEVICE}, cuda:0 and cpu! ({name}; {shape} is on the CPU)")


def unwrapped(value):
    """An operator's argument, its tensors replaced by those on the CPU."""
    if isinstance(value, CudaTensor):
        return value.on_cpu
    if isinstance(value, list | tuple):
        return type(value)(unwrapped(part) for part in value)
    return value


def run(operator, args: tuple, kwargs: dict):
    """The result of an operator, on the device where torch would put it."""
    tensors = [*tensors_in(args), *tensors_in(kwargs.values())]
    ours = [tensor for tensor in tensors if isinstance(tensor, CudaTensor)]
    device = kwargs.get("device") or next((v for v in args if isinstance(v, torch.device)), None)
    to_cuda = bool(ours) if device is None else torch.device(device).type in ("cuda", "xla")
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if not ours and not to_cuda:
        if getattr(kwargs.get("generator"), "_cdata", None) in Generator.on_cuda:
            refuse("Expected a 'cpu' device type for generator but found 'cuda'")
        return operator(*args, **kwargs)
    if to_cuda and device is not None and (torch.device(device).index or 0) > 0:
        refuse("CUDA error: invalid device ordinal")
    if operator.has_kernel_for_dispatch_key(COMPOSITE):  # whole only in inference mode
        with Mode():
            return operator.decompose(*args, **kwargs)
    check(operator, args, kwargs)
    if operator is aten.detach_.default:
        return args[0]
    if torch.Tag.inplace_view in operator.tags or operator._schema.name == "aten::set_":
        raise NotImplementedError(f"{operator}: a wrapper can't change its shape in place")
    cpu_kwargs = {key: unwrapped(value) for key, value in kwargs.items()}
    if device is not None:
        cpu_kwargs["device"] = "cpu" if to_cuda else device
    result = operator(*unwrapped(args), **cpu_kwargs)
    if operator is aten._to_copy.default and to_cuda != bool(ours) and result is unwrapped(args[0]):
        result = result.clone()  # it has gone from one device to the other
    aliases = [value.alias_info for value in operator._schema.returns if value.alias_info]
    is_view = any(not alias.is_write for alias in aliases)
    view_of = ours[0] if is_view and ours else None
    return wrapped(result, tensors, view_of) if to_cuda else result


def wrapped(value, tensors: list[Tensor], view_of: Tensor | None):
    """An operator's result, in wrappers; those of its arguments where it changed them in place."""
    if isinstance(value, list | tuple):
        return type(value)(wrapped(part, tensors, view_of) for part in value)
    if not isinstance(value, Tensor):
        return value
    for tensor in tensors:
        if tensor is value or getattr(tensor, "on_cpu", None) is value:
            return tensor
    if view_of is None or view_of.is_inference() == torch.is_inference_mode_enabled():
        return CudaTensor(value)
    with torch.inference_mode(view_of.is_inference()):  # a view is what its base is
        return CudaTensor(value)


class Mode(TorchDispatchMode):
    """Brings operators here that have no wrapper yet: factories, and copies from the CPU."""


def dispatch(self, operator, types, args=(), kwargs=None):
    return run(operator, args, kwargs or {})


Mode.__torch_dispatch__ = dispatch  # set later, for otherwise torch imports its compiler
