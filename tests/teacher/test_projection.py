"""Embeddings of a teacher are projected to the student's dimension, alike everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from helpers.teacher_cases import CPU, pictures
from partialkd.errors import TeacherError
from partialkd.teacher.network import orthonormal, wrap_teacher

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("rows", "columns"), [(16, 4), (4, 16), (8, 8)])
def test_projection_is_orthonormal_and_fixed(rows: int, columns: int) -> None:
    basis = orthonormal(rows, columns)
    assert basis.shape == (rows, columns)
    assert basis.dtype == torch.float32
    product = basis.T @ basis if rows >= columns else basis @ basis.T
    torch.testing.assert_close(product, torch.eye(min(rows, columns)), rtol=0, atol=1e-6)
    assert torch.equal(basis, orthonormal(rows, columns))


def test_projection_has_the_written_down_values() -> None:
    """Gram-Schmidt in plain Python over the same normal numbers: what any machine must arrive at."""
    numbers = np.random.RandomState(20240701).standard_normal((5, 3)).tolist()
    columns: list[list[float]] = []
    for column in zip(*numbers, strict=True):
        rest = list(column)
        for _ in range(2):
            for done in columns:
                overlap = sum(a * b for a, b in zip(rest, done, strict=True))
                rest = [a - overlap * b for a, b in zip(rest, done, strict=True)]
        length = sum(a * a for a in rest) ** 0.5
        columns.append([a / length for a in rest])
    torch.testing.assert_close(orthonormal(5, 3), torch.tensor(columns).T, rtol=0, atol=1e-6)


def test_embeddings_and_classifier_rows_are_projected_alike(network: nn.Module) -> None:
    plain, projected, wider = (wrap_teacher(network, 32, CPU, to) for to in (None, 8, 64))
    raw = plain.embed(pictures(5))
    assert (projected.embedding_dim, wider.embedding_dim) == (8, 64)
    torch.testing.assert_close(projected.embed(pictures(5)), raw @ orthonormal(16, 8))
    torch.testing.assert_close(projected.project(raw), projected.embed(pictures(5)))
    assert plain.project(raw) is raw
    torch.testing.assert_close(wider.project(raw) @ wider.project(raw).T, raw @ raw.T, rtol=1e-4, atol=1e-4)
    with pytest.raises(TeacherError, match=r"rows must be \(n, 16\).*\(3, 8\)"):
        projected.project(torch.zeros(3, 8))
