"""What every term is given: the global batch with the right gradient at any number of ranks, tensors that are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.ranks import run
from partialkd.config import EmbeddingTermConfig
from partialkd.methods.stateful import Stateful, States, without_states
from partialkd.methods.terms import Term, TermInputs, TermSetting
from partialkd.world.world import World

N, DIM, TEACHER_DIM = 6, 5, 7


def batch() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    draw = lambda dim: torch.randn(N, dim, generator=g, dtype=torch.float64)
    return draw(DIM), draw(TEACHER_DIM), torch.tensor([3, 2**40, 0, 3, 1, 2])


def value(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Something in which every pair of images takes part."""
    pairs = (student @ student.T).sin() * (teacher @ teacher.T).cos()
    return (pairs * (labels[:, None] == labels)).sum() + pairs.square().mean()


def gathered(world: World, dtype: torch.dtype) -> dict[str, Any]:
    x, t, y = batch()
    mine = torch.arange(N).chunk(world.size)[world.rank]
    own = x[mine].to(dtype).requires_grad_()
    inputs = TermInputs(own, y[mine], t[mine].float(), world)
    everyone = inputs.gathered
    assert inputs.gathered is everyone  # one collective, however many ask
    assert everyone.teacher is not None
    found = value(everyone.student, everyone.teacher, everyone.labels)
    found.backward()
    without = TermInputs(own, y[mine], None, world).gathered
    assert without.teacher is None
    assert torch.equal(without.labels, y)
    return {
        "value": found.detach(),
        "gradient": own.grad,
        "student": everyone.student.detach(),
        "labels": everyone.labels,
    }


@pytest.mark.distributed
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_gathered_batch_gives_value_and_gradient_of_all_rows(size: int) -> None:
    x, t, y = batch()
    x.requires_grad_()
    wanted = value(x, t.float().double(), y)
    wanted.backward()
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-4)):
        ranks = run(gathered, size, dtype)
        for rank in ranks:
            torch.testing.assert_close(rank["value"], wanted.detach().to(dtype), atol=tolerance, rtol=tolerance)
            assert torch.equal(rank["student"], x.detach().to(dtype))
            assert torch.equal(rank["labels"], y)
        averaged = torch.cat([rank["gradient"] for rank in ranks]) / size
        torch.testing.assert_close(averaged, x.grad.to(dtype), atol=tolerance, rtol=tolerance)


class Counter(Stateful):
    """Keeps how many steps were taken, and of which class it last heard."""

    def __init__(self, rows: int) -> None:
        self.count, self.last, self.heard = torch.zeros(1), torch.zeros(rows, 2), 0

    def state(self) -> dict[str, Tensor]:
        return {"count": self.count}

    def rows(self) -> dict[str, Tensor]:
        return {"last": self.last}

    def stepped(self) -> None:
        self.count += self.heard
        self.heard = 0

    def skipped(self) -> None:
        self.heard = 0


def test_states_are_named_by_part_and_loaded_by_name() -> None:
    first, other = (States({"method": object(), "term_0_a": Counter(3), "term_1_b": Counter(3)}) for _ in range(2))
    for part, heard in (("term_0_a", 1), ("term_1_b", 5)):
        counter = first.parts[part]
        assert isinstance(counter, Counter)
        counter.heard = heard
        counter.last += heard
    first.stepped()
    assert {key: x.tolist() for key, x in first.state().items()} == {
        "state.term_0_a.count": [1.0], "state.term_1_b.count": [5.0],
    }  # fmt: skip
    saved = {key: x.clone() for key, x in (first.state() | first.rows()).items()}
    assert other.problem(saved | {"unit": torch.ones(3)}) is None
    other.load_state(saved | {"unit": torch.ones(3)})
    assert {key: x.tolist() for key, x in (other.state() | other.rows()).items()} == {
        key: x.tolist() for key, x in saved.items()
    }
    assert without_states(saved | {"unit": torch.ones(3)}).keys() == {"unit"}


def test_what_a_step_found_is_forgotten_where_it_is_left_out() -> None:
    counter = Counter(1)
    states = States({"method": counter})
    counter.heard = 3
    states.skipped()
    states.stepped()
    assert counter.count.item() == 0


def test_what_does_not_fit_a_state_is_named() -> None:
    states = States({"term_0_a": Counter(3)})
    assert states.problem({}) == "state.term_0_a.count: not in the checkpoint"
    wrong = {"state.term_0_a.count": torch.zeros(1), "state.term_0_a.last": torch.zeros(4, 2)}
    assert states.problem(wrong) == "state.term_0_a.last: must have the shape (3, 2), got (4, 2)"


def test_a_setting_tells_the_classes_of_its_rank() -> None:
    term = Term(EmbeddingTermConfig(name="embedding"), TermSetting(World(rank=1, size=3), 10))
    assert term.setting.shard == range(4, 7)
    assert States({"term_0_embedding": term}).state() == {}
