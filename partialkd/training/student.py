"""The network being trained: one forward, one backward, one optimiser step. The only module that imports DeepSpeed.

Shapes: images (b, 3, H, W) float32 -> embeddings (b, D) float32; their gradient has the embeddings' shape.
Gradient: `backward` takes the gradient of this rank's mean loss; DeepSpeed divides it once by `accumulation` and
averages it over the ranks, so no factor of world size or accumulation belongs anywhere else.
ZeRO stages 0-3 give the same numbers up to rounding (0: replicated; 1: optimiser state, 2: and gradients, 3: and
parameters sharded). The norm is clipped over all parameters and ranks; the published recipe's weight decay applies to
every trained parameter, BatchNorm's and biases too.
Precision "bf16" is torch.autocast: parameters, optimiser state and gradient reductions stay in float32. Differs from
DeepSpeed's own choice, which also sends the gradients of convolutions in bfloat16, at stages 1-3 only.
BatchNorm normalises per rank; `sync_batchnorm`: over all ranks; `freeze_batchnorm`: with its running statistics, which
then stay as they are, while its scale and shift train on.
`freeze_steps`: in the first so many steps the network is as in eval mode and does not move: no backward pass, no
moments, no running statistics. `ema_decay`: a moving average of the network (weights_average.py), given by `network`.
`compile` (stages 0-2): the network's forward and backward pass are compiled, without CUDA graphs (models/compiled.py).
All gradients then come at the end of the backward pass, and stage 2 reduces none of them during it.

State is told by parameter name and in full, so it loads at any ZeRO stage and world size; at the same ones the
continuation is exact. Buffers (running statistics) are each rank's own.
Raises: ConfigError naming the key; CheckpointError naming the missing or misshapen entry, before anything is changed;
FloatingPointError on all ranks instead of a step with a gradient that is not finite, which then changes nothing:
parameters, moments and running statistics are what they were before its first micro-step. Without `guarded` that holds
for parameters and moments at stages 1-3 only: stage 0 does not wait for the device to find out, and the norm, and with
it every parameter, becomes NaN.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from partialkd.config import PhaseConfig
from partialkd.errors import CheckpointError, ConfigError
from partialkd.models.compiled import compile_in_place
from partialkd.models.sync_batchnorm import synchronise
from partialkd.training.frozen import HeldSteps, set_training
from partialkd.training.optimizer import clip, make_optimizer, moment_keys, set_lr, trained
from partialkd.training.schedule import Schedule
from partialkd.training.student_state import StudentState
from partialkd.training.tapping import Tapping
from partialkd.training.weights_average import WeightsAverage
from partialkd.training.zero_values import FullValues
from partialkd.world.world import COLLECTIVES, World

BUCKET = 16_000_000  # gradient elements reduced at once at stages 1-3; DeepSpeed's own 500 M would allocate 2 GB


class Student:
    """A network in training: its engine, its optimiser and its place in the schedule."""

    def __init__(
        self,
        model: nn.Module,
        phase: PhaseConfig,
        world: World,
        micro_steps: int,
        key: str = "student",
        guarded: bool = False,
        taps: Tapping | None = None,
    ) -> None:
        """micro_steps: per epoch, as of the TrainingPlan; key: the phase's name in the configuration.

        guarded: look at every norm before the step, at stage 0 too, and keep the running statistics until then.
        taps: what terms look at inside the network; their adapters train with it.
        """
        if phase.sync_batchnorm and phase.freeze_batchnorm:
            raise ConfigError(f"{key}.sync_batchnorm: must be false with {key}.freeze_batchnorm = true, got true")
        self.phase = phase
        self.world = world
        self.schedule = Schedule.of_phase(phase, micro_steps, key)
        self.steps = 0  # optimiser steps done
        self._guarded = guarded
        self._blank = copy.deepcopy(model).to("meta")  # the plain network, before anything is hooked into it
        self._buffers: list[Tensor] = []  # as they were before the optimiser step
        self.norm: Any = None  # of the last optimiser step, before clipping, on the device
        model = _prepared(model, phase, world)
        self._before_reduction: Callable[[], None] | None = None
        self._taps = taps
        if taps is not None:
            taps.attach(model, world.device)
        self.optimizer = make_optimizer(model, phase.optimizer)
        self._moments = moment_keys(phase.optimizer)
        self._deepspeed = _import_deepspeed(world)
        self.engine = self._initialize(model)
        self._values = FullValues(self._deepspeed, self.engine, self.optimizer, phase.zero_stage, world)
        self.average = self._start_average() if phase.ema_decay is not None else None
        self._state = StudentState(model, self._values, self._moments, self.average)
        self._held = HeldSteps(world, phase.accumulation)
        set_training(model, phase, not self.frozen)
        if phase.compile:
            compile_in_place(model, world.device, f"{key}.compile")

    @property
    def lr(self) -> float:
        """Learning rate the next optimiser step will use."""
        return self.phase.optimizer.lr * self.schedule.factor(self.steps)

    @property
    def frozen(self) -> bool:
        """Whether the next optimiser step leaves the network as it is."""
        return self.steps < self.phase.freeze_steps

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the schedule."""
        return self.schedule.total_steps

    @property
    def grad_norm(self) -> float | None:
        """Norm of the last gradient before clipping; NaN if it was not finite. Reading it waits for the device."""
        if self.norm is None:
            return None
        norm = float(self.norm)
        return norm if norm >= 0 else float("nan")  # DeepSpeed says -1

    def embed(self, images: Tensor) -> Tensor:
        """Images (b, 3, H, W) -> embeddings (b, D) float32, with graph unless the network is frozen."""
        if self.frozen == self.engine.module.training:
            set_training(self.engine.module, self.phase, not self.frozen)
        if self.frozen:
            with torch.no_grad():
                return self.engine(images).float()
        if self._guarded and self.engine.micro_steps % self.phase.accumulation == 0:
            self._buffers = [buffer.clone() for buffer in self.engine.module.buffers()]
        if self._taps is not None:
            self._taps.clear()
        return self.engine(images).float()

    def backward(self, embeddings: Tensor, gradient: Tensor) -> None:
        """Adds the gradient of this rank's mean loss, given with respect to its embeddings (b, D), and tapped maps."""
        if self.frozen:
            self._held.backward(gradient)
            return
        carried = (embeddings * gradient).sum()
        self.engine.backward(carried if self._taps is None else carried + self._taps.carried())

    def step(self) -> bool:
        """Step, after each backward -> True if this micro-step was the last of its optimiser step, now done."""
        if self.frozen:
            return self._step_frozen()
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()
            return False
        if not self._step_at(self.lr):
            for buffer, before in zip(self.engine.module.buffers(), self._buffers, strict=False):
                buffer.copy_(before)
            raise FloatingPointError(f"the gradient of optimiser step {self.steps} is not finite")
        if self.average:
            self.average.stepped()
        self.steps += 1
        return True

    def _step_frozen(self) -> bool:
        norm = self._held.step()
        if norm is None:
            return False
        if not norm.isfinite():
            raise FloatingPointError(f"the gradient of optimiser step {self.steps} is not finite")
        self.norm = norm
        self.steps += 1
        return True

    def before_reduction(self, call: Callable[[], None]) -> None:
        """Let this be called after every backward pass, before what is left of its gradients is reduced over ranks."""
        self._before_reduction = call

    def close(self) -> None:
        """Take DeepSpeed's hooks off the network. The student cannot be used afterwards."""
        self.engine.destroy()
        if self._taps is not None:
            self._taps.close()

    # ------------------------------------------------------------------------------------------------ state

    def network(self) -> nn.Module:
        """Copy the network, collectively: plain float32, in eval mode, running statistics averaged over ranks.

        With `ema_decay` it is the moving average.
        """
        network = copy.deepcopy(self._blank).to_empty(device=self.world.device).eval()
        averaged = {name for name, _ in network.named_buffers() if name.endswith(("running_mean", "running_var"))}
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(self._state.averaged(self.engine.module.get_parameter(name)))
            for name, buffer in network.named_buffers():
                live = self.engine.module.get_buffer(name)
                live = self.average.buffers.get(name, live) if self.average else live
                buffer.copy_(self.world.mean(live) if name in averaged else live)
        return network

    def state(self) -> dict[str, Tensor]:
        """Give the full state, collectively, on rank 0: what `StudentState` says, and "counter.steps"."""
        self._between_steps("state")
        full = {"counter.steps": torch.tensor(self.steps)} if self.world.is_main else {}
        for key, value in self._state.entries(self._has_moments(self.steps)):
            if self.world.is_main:
                full[key] = value.detach().to("cpu", copy=True)
        return full

    def local_state(self) -> dict[str, Tensor]:
        """Give this rank's own: "buffer.<name>", and with `ema_decay` "average.<name>", on the CPU."""
        return self._state.local()

    def load_state(self, full: dict[str, Tensor], local: dict[str, Tensor]) -> None:
        """Continue from `state` (given to every rank) and a rank's `local_state`; collective."""
        self._between_steps("load_state")
        started = self._has_moments(int(full.get("counter.steps", 0)))
        self.world.agree(self._state.problem(full, local, started), CheckpointError)
        self.steps = int(full["counter.steps"])
        self._make_moments()
        self._state.load(full, local, started)
        self._set_optimizer_steps(max(0, self.steps - self.phase.freeze_steps))

    # --------------------------------------------------------------------------------------------- DeepSpeed

    def _initialize(self, model: nn.Module) -> Any:
        phase = self.phase
        settings = {
            "train_micro_batch_size_per_gpu": max(1, phase.global_batch // phase.accumulation // self.world.size),
            "gradient_accumulation_steps": phase.accumulation,
            # At stage 0 we clip: DeepSpeed would, but keeps the norm to itself.
            "gradient_clipping": phase.optimizer.clip_norm if phase.zero_stage else 0.0,
            "zero_optimization": {"stage": phase.zero_stage, "reduce_bucket_size": BUCKET},
            "zero_allow_untested_optimizer": True,
            "timers": {"throughput": {"enabled": False}},  # it would wait for the device twice a step
        }
        if phase.precision == "bf16":
            # No module is "lower precision safe": that list only says which gradients are rounded before reduction.
            settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            engine, *_ = self._deepspeed.initialize(
                model=model, optimizer=self.optimizer, model_parameters=list(trained(model)), config=settings
            )
        reduce, clock = engine.allreduce_gradients, self.world.clock

        def timed(*arguments: Any, **options: Any) -> Any:
            if self._before_reduction is not None:
                self._before_reduction()
            with clock.within(COLLECTIVES):
                return reduce(*arguments, **options)

        engine.allreduce_gradients = timed
        return engine

    def _step_at(self, lr: float) -> bool:
        """Step at this learning rate -> False if the gradient was not finite, and nothing changed."""
        set_lr(self.optimizer, lr)
        applied = True
        if self.phase.zero_stage == 0:
            self.norm = clip(list(trained(self.engine.module)), self.phase.optimizer.clip_norm)
            applied = not self._guarded or bool(self.norm.isfinite())
            if not applied:
                self.engine.module.zero_grad()  # optimisers pass over parameters without a gradient
        self.engine.step()
        if self.phase.zero_stage > 0:
            self.norm = self.engine.get_global_grad_norm()
        return applied and self.engine.was_step_applied()

    def _make_moments(self) -> None:
        """Let every stage create its optimiser state, by an optimiser step of gradient and learning rate zero.

        A loss made of the parameters themselves needs no images, and leaves the running statistics alone.
        """
        parameters = list(trained(self.engine.module))
        for micro_step in range(self.phase.accumulation):
            with self._deepspeed.zero.GatheredParameters(parameters):
                self.engine.backward(torch.stack([(parameter * 0).sum() for parameter in parameters]).sum())
            if micro_step + 1 < self.phase.accumulation:
                self.engine.step()
        self._step_at(0.0)
        self.norm = None

    def _fresh_moments(self) -> None:
        """Create the optimiser state as it is before the first step: zeros."""
        self._make_moments()
        for parameter in self._values.owned():
            for key in self._moments:
                self.optimizer.state[parameter][key].zero_()
        self._set_optimizer_steps(0)

    def _set_optimizer_steps(self, steps: int) -> None:
        for state in self.optimizer.state.values():
            if "step" in state:
                state["step"].fill_(steps)

    def _start_average(self) -> WeightsAverage:
        self._fresh_moments()
        decay = self.phase.ema_decay
        assert decay is not None
        average = WeightsAverage(self.engine.module, self._values.owned(), self.optimizer.state, decay)
        self._values.relink()
        return average

    def _has_moments(self, steps: int) -> bool:
        """Say whether the optimiser has moved anything in so many steps."""
        return steps > self.phase.freeze_steps

    def _between_steps(self, what: str) -> None:
        if self.engine.micro_steps % self.phase.accumulation or not self._held.between_steps:
            raise RuntimeError(f"Student.{what} is not possible while gradients accumulate")


# ------------------------------------------------------------------------------------------------------- parts


def _prepared(model: nn.Module, phase: PhaseConfig, world: World) -> nn.Module:
    model = model.to(world.device)
    for parameter in model.parameters():
        # DeepSpeed flattens parameters and cannot even broadcast channels_last ones; convolutions follow their input.
        # Not contiguous(): it leaves the strides of a channels_last 1x1 kernel as they are.
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return synchronise(model, world) if phase.sync_batchnorm else model


def _import_deepspeed(world: World) -> Any:
    """Import late (it takes seconds), for the device the world uses, quietly, and with nothing compiled on the way."""
    os.environ["DS_ACCELERATOR"] = world.device.type
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiles for minutes at the first start
    # Otherwise it clones the group of all ranks, with a timeout of its own (30 minutes on gloo).
    deepspeed.utils.groups._WORLD_GROUP = world.group
    deepspeed.utils.logger.setLevel(logging.ERROR if world.is_main else logging.CRITICAL + 1)
    return deepspeed
