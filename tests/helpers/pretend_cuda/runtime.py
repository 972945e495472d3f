"""What of `torch.cuda`, and of torch's own functions, is another on the pretend device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from helpers.pretend_cuda.log import LOG
from helpers.pretend_cuda.tensor import DeviceTensor, on_cuda

BYTES = 80 << 30
DEVICES = 8
COUNTS = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
ACTS = ("_lazy_init", "empty_cache", "check_error", "manual_seed", "manual_seed_all", "set_rng_state")
ACTS = (*ACTS, "reset_peak_memory_stats")


class Properties:
    """Of an H100, as far as they are asked for."""

    name, major, minor, total_memory, multi_processor_count = "pretend CUDA device", 9, 0, BYTES, 132
    L2_cache_size = 50 << 20
    shared_memory_per_block_optin = 227 << 10


class Event:
    """Has always happened."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        LOG.wait("Event.synchronize")

    def elapsed_time(self, _: Event) -> float:
        return 1.0


class Stream:
    """All are the same one."""

    cuda_stream = 0
    device = property(lambda _: torch.device("cuda", DeviceTensor.current))

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream)

    __hash__ = object.__hash__

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None: ...

    def query(self) -> bool:
        return True

    def wait_stream(self, _: Stream) -> None: ...

    def wait_event(self, _: Event) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def synchronize(self) -> None:
        LOG.wait("Stream.synchronize")


class Library:
    """The runtime library's calls that lock pages."""

    def cudaHostRegister(self, address: int, *_: int) -> int:
        LOG.pinned.add(address)
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        LOG.pinned.discard(address)
        return 0


@contextlib.contextmanager
def stream(one: Stream | None) -> Iterator[Stream | None]:
    """Be the context of a stream."""
    yield one


def _set_device(device: Any) -> None:
    index = device if isinstance(device, int) else torch.device(device).index
    DeviceTensor.current = index or 0


def _forbid(mode: int | str) -> None:
    LOG.forbids = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)  # type: ignore[call-overload,assignment]


def _giving(what: Callable[[], Any]) -> Callable[..., Any]:
    """Make a function that takes anything; a new one each time, for torch's compiler tells them apart by identity."""
    return lambda *_, **__: what()


def install() -> None:
    """Replace them, for as long as the process lives."""
    replaced: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: DEVICES,
        "current_device": lambda: DeviceTensor.current,
        "set_device": _set_device,
        "get_device_properties": lambda *_: Properties,
        "get_device_name": lambda *_: Properties.name,
        "get_device_capability": lambda *_: (Properties.major, Properties.minor),
        "Event": Event,
        "Stream": Stream,
        "stream": stream,
        "synchronize": lambda *_: LOG.wait("torch.cuda.synchronize"),
        "set_sync_debug_mode": _forbid,
        "get_sync_debug_mode": lambda: LOG.forbids,
        "cudart": Library,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "memory_stats": lambda *_: {},
        "mem_get_info": lambda *_: (BYTES, BYTES),
    }
    replaced |= {name: _giving(Stream) for name in ("current_stream", "default_stream")}
    replaced |= {name: _giving(int) for name in COUNTS}
    replaced |= {name: _giving(type(None)) for name in ACTS}
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    torch.cuda.nvtx.range_push = _giving(type(None))  # type: ignore[assignment]
    torch.cuda.nvtx.range_pop = _giving(type(None))  # type: ignore[assignment]
    torch.tensor = _tensor_like(torch.tensor)
    Tensor.is_pinned = lambda self, *_: not isinstance(self, DeviceTensor) and LOG.is_pinned(self)  # type: ignore[method-assign,assignment]
    Tensor.pin_memory = lambda self, *_: LOG.pin(self.clone())  # type: ignore[method-assign,assignment]
    Tensor.cuda = lambda self, *_, **options: self.to(f"cuda:{DeviceTensor.current}", **options)  # type: ignore[method-assign,assignment]
    nn.Module._apply = _apply  # type: ignore[method-assign,assignment]
    _join_by_gloo()


def _tensor_like(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.tensor does not go through the dispatcher as a whole."""

    def tensor(*args: Any, pin_memory: bool = False, device: Any = None, **options: Any) -> Tensor:
        made = original(*args, **options)
        if on_cuda(device):
            LOG.wait("torch.tensor(numbers, device)")
            return DeviceTensor(made) if not made.requires_grad else made.to("cuda")
        return LOG.pin(made) if pin_memory else made

    return tensor


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """nn.Module._apply, which cannot swap a CPU parameter's data for another class of tensor."""
    for child in self.children() if recurse else ():
        child._apply(fn)
    for key, parameter in self._parameters.items():
        if parameter is None:
            continue
        with torch.no_grad():
            new = fn(parameter)
        if new is parameter:
            continue
        if isinstance(parameter, DeviceTensor) == isinstance(new, DeviceTensor) and new.device == parameter.device:
            parameter.data = new
        else:
            plain = DeviceTensor(new.inner) if isinstance(new, DeviceTensor) else new.detach()
            self._parameters[key] = nn.Parameter(plain, parameter.requires_grad)
    for key, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[key] = fn(buffer)
    return self


def _join_by_gloo() -> None:
    import torch.distributed as dist

    join = dist.init_process_group

    def init_process_group(*args: Any, backend: Any = None, device_id: Any = None, **options: Any) -> None:
        join(*args, backend="gloo", **options)

    dist.init_process_group = init_process_group  # type: ignore[assignment]
