"""A tensor labelled as on CUDA with its numbers on the CPU, and which operations on it are refused or noted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from helpers.pretend_cuda.log import LOG

INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")
# What gives the host a number, or has a size that depends on the content.
WAITING = (
    "_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive",
    "equal", "is_nonzero", "bincount", "_assert_async_",
)  # fmt: skip
NUMBERS = ("_local_scalar_dense", "equal", "is_nonzero")
NOT_BY_NCCL = (torch.bool, torch.int16)  # types of which torch's NCCL backend makes no sums or nothing at all


class DeviceTensor(Tensor):
    """Labelled as on the current pretend device; `inner` has the numbers, on the CPU."""

    current = 0  # index of the device that this process uses
    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> DeviceTensor:
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=f"cuda:{DeviceTensor.current}", requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return operate(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.inner!r})"

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        if isinstance(value, DeviceTensor):
            self.inner = value.inner
        Tensor.data.__set__(self, value)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self) -> Any:
        LOG.wait("tolist")
        return self.inner.tolist()

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return self.to("cpu")

    def record_stream(self, stream: Any) -> None:
        """Do nothing: there is one stream."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) in memo:
            return memo[id(self)]
        out: Tensor = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            out = torch.nn.Parameter(out, self.requires_grad)
        memo[id(self)] = out
        return out


class Mode(TorchDispatchMode):
    """Sees what makes tensors on the device, page-locked memory, and collectives."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "c10d":
            _note_collective(func, args, kwargs)
        if kwargs.get("pin_memory"):
            return LOG.pin(operate(func, args, {**kwargs, "pin_memory": False}))
        return operate(func, args, kwargs)


def on_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def operate(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do an operation of torch on tensors of the device, and on others."""
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    ours = any(isinstance(x, DeviceTensor) for x in tensors)
    if not ours and not on_cuda(kwargs.get("device")):
        return func(*args, **kwargs)
    name = func._schema.name.partition("::")[2]
    result_here = name != "_to_copy" or _moved_to_device(args, kwargs)
    if name == "copy_":
        _note_copy(args[1], args[0], bool(args[2]) if len(args) > 2 else kwargs.get("non_blocking", False))
    elif name != "_to_copy" and ours:
        _refuse_both(func, name, args, tensors)
        _note_wait(name, args, kwargs)
    plain, options = pytree.tree_map(_inner, (args, kwargs))
    if on_cuda(options.get("device")):
        options["device"] = torch.device("cpu")
    if name in ("mm", "addmm", "bmm", "baddbmm") and func._overloadname.startswith("dtype"):
        return _with_wider_sums(name, func._overloadname, plain, options, kwargs)
    out = func(*plain, **options)
    if name in NUMBERS or not result_here:
        return out
    if name == "copy_" and not isinstance(args[0], DeviceTensor):
        return args[0]
    # In inference mode a view of a tensor from outside of it is none of its tensors either.
    viewed = func.is_view and not any(x.is_inference() for x in tensors)
    with torch.inference_mode(torch.is_inference_mode_enabled() and not viewed):
        return _relabelled(func, args, kwargs, pytree.tree_map(_wrapped, out), ours)


def _relabelled(func: Any, args: Any, kwargs: dict[str, Any], out: Any, ours: bool) -> Any:
    """Make results that share memory with an argument do so outside, too."""
    if not ours:
        return out
    try:
        return return_and_correct_aliasing(func, args, kwargs, out)
    except (AssertionError, RuntimeError):  # collectives have schemas that it does not know
        if func._schema.is_mutable and func.namespace != "c10d":
            return args[0]
        return out


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, DeviceTensor) else x


def _wrapped(x: Any) -> Any:
    return DeviceTensor(x) if isinstance(x, Tensor) and not isinstance(x, DeviceTensor) else x


def _moved_to_device(args: Any, kwargs: dict[str, Any]) -> bool:
    """Note what a `to` between the devices means -> whether its result is on the device."""
    x, target = args[0], kwargs.get("device")
    here = isinstance(x, DeviceTensor)
    there = on_cuda(target) if target is not None else here
    if here != there:
        _note_copy(x, None, kwargs.get("non_blocking", False))
    return there


def _note_copy(source: Tensor, into: Tensor | None, non_blocking: bool) -> None:
    here = isinstance(source, DeviceTensor)
    if into is not None and isinstance(into, DeviceTensor) == here:
        return
    if here:
        # A tensor that `to` makes on the host is page-locked if nobody waits for it.
        if not (non_blocking and (into is None or LOG.is_pinned(into))):
            LOG.wait("copy to the host")
        return
    kind = "page-locked" if LOG.is_pinned(source) else "pageable"
    LOG.copies[f"{kind}, {'not waited for' if non_blocking else 'waited for'}"] += 1
    if not non_blocking or (kind == "pageable" and source.dim()):
        LOG.wait(f"copy from {kind} memory")


def _refuse_both(func: Any, name: str, args: Any, tensors: list[Tensor]) -> None:
    """Raise for tensors of both devices; one number, and indices, may lie on the host."""
    others = [x for x in tensors if not isinstance(x, DeviceTensor) and x.dim() > 0]
    if not others or func.namespace == "c10d":
        return
    indexed = name in INDEXING and isinstance(args[0], DeviceTensor)
    if indexed and (len(args) < 3 or isinstance(args[2], DeviceTensor) or args[2].dim() == 0):
        LOG.wait("index on the host")
        return
    shapes = [(tuple(x.shape), str(x.device)) for x in tensors]
    rule = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
    raise RuntimeError(f"{rule} ({func}, {shapes})")


def _note_wait(name: str, args: Any, kwargs: dict[str, Any]) -> None:
    if name in INDEXING:
        masks = [x for x in args[1] if isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)]
        if masks:
            LOG.wait("index by a mask")
    if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
        LOG.wait(name)


def _note_collective(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    name = func._schema.name.partition("::")[2]
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    from helpers.pretend_cuda.log import place

    where = place()
    LOG.collectives[f"{name} at {where}"] += 1
    if name in ("barrier", "monitored_barrier_"):
        return
    if any(not isinstance(x, DeviceTensor) for x in tensors):
        LOG.refused[f"{name} of a CPU tensor at {where}"] += 1
    for dtype in {x.dtype for x in tensors}.intersection(NOT_BY_NCCL):
        LOG.refused[f"{name} of {dtype} at {where}"] += 1


def _with_wider_sums(name: str, overload: str, plain: Any, options: Any, kwargs: Any) -> Tensor:
    """Products of bfloat16 numbers with float32 results, which torch has on CUDA only."""
    exact = [x.float() if isinstance(x, Tensor) else x for x in plain]
    exact = [x for x in exact if not isinstance(x, torch.dtype)]
    further = {key: value for key, value in options.items() if key in ("beta", "alpha")}
    product: Callable[..., Tensor] = getattr(torch, name)
    found = product(*exact, **further)
    if "out" in kwargs:
        options["out"].copy_(found)
        return kwargs["out"]
    return DeviceTensor(found)
