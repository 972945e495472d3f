"""State of a network in training, by parameter name and in full, whatever ranks a ZeRO stage keeps it on.

param.<name>  moment.<key>.<name>     equal on all ranks: values, and the optimiser's memory once it has stepped
average.<name>                        the moving average of a parameter, or of a buffer (each rank's own), if asked
buffer.<name>                         each rank's own
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from partialkd.training.weights_average import AVERAGE, WeightsAverage
from partialkd.training.zero_values import FullValues, full_shape


class StudentState:
    """Gives and takes the values of one network; methods are collective unless they say otherwise."""

    def __init__(
        self, network: nn.Module, values: FullValues, moments: tuple[str, ...], average: WeightsAverage | None
    ) -> None:
        """moments: what the optimiser remembers of each parameter."""
        self.network, self.values, self.moments, self.average = network, values, moments, average

    def entries(self, started: bool) -> Iterator[tuple[str, Tensor]]:
        """Give every parameter, moment and average in full, one at a time. started: there are moments."""
        for name, parameter in self.network.named_parameters():
            yield f"param.{name}", self.values.parameter(parameter)
            for key, kept in self._kept(name, parameter, started):
                yield key, self.values.moment(parameter, kept)

    def local(self) -> dict[str, Tensor]:
        """Give this rank's buffers and their averages, on the CPU; not collective."""
        buffers = self.network.named_buffers()
        own = {f"buffer.{name}": buffer.detach().to("cpu", copy=True) for name, buffer in buffers}
        return own | (self.average.local_state() if self.average else {})

    def problem(self, full: dict[str, Tensor], local: dict[str, Tensor], started: bool) -> str | None:
        """Say what is wrong with a state that is to be loaded, or None; not collective."""
        given = full | local
        for key, shape in self._expected(started):
            if key not in given:
                return f"{key}: not in the checkpoint"
            if given[key].shape != shape:
                return f"{key}: must have the shape {tuple(shape)}, got {tuple(given[key].shape)}"
        return None

    def load(self, full: dict[str, Tensor], local: dict[str, Tensor], started: bool) -> None:
        """Set everything, given in full on every rank and as this rank's own; the optimiser must have its moments."""
        for name, parameter in self.network.named_parameters():
            self.values.set_parameter(parameter, full[f"param.{name}"])
            for key, kept in self._kept(name, parameter, True):
                absent = kept != AVERAGE and not started
                self.values.set_moment(parameter, kept, torch.zeros(full_shape(parameter)) if absent else full[key])
        for name, buffer in self.network.named_buffers():
            buffer.copy_(local[f"buffer.{name}"])
        if self.average:
            self.average.load_local(local)

    def averaged(self, parameter: nn.Parameter) -> Tensor:
        """Give a parameter's value, or its average if there is one."""
        if self.average and parameter.requires_grad:
            return self.values.moment(parameter, AVERAGE)
        return self.values.parameter(parameter)

    def _kept(self, name: str, parameter: nn.Parameter, started: bool) -> Iterator[tuple[str, str]]:
        """Name what is kept of a parameter beside its value: in a checkpoint, and in the optimiser."""
        if parameter.requires_grad and started:
            yield from ((f"moment.{key}.{name}", key) for key in self.moments)
        if parameter.requires_grad and self.average:
            yield f"{AVERAGE}.{name}", AVERAGE

    def _expected(self, started: bool) -> Iterator[tuple[str, torch.Size]]:
        yield "counter.steps", torch.Size([])
        for name, parameter in self.network.named_parameters():
            yield f"param.{name}", full_shape(parameter)
            yield from ((key, full_shape(parameter)) for key, _ in self._kept(name, parameter, started))
        for name, buffer in self.network.named_buffers():
            yield f"buffer.{name}", buffer.shape
        for name, buffer in self.average.buffers.items() if self.average else ():
            yield f"{AVERAGE}.{name}", buffer.shape
