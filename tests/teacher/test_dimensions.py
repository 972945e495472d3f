"""Teacher and student of different dimension: every method and every term, through one fixed projection."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.ranks import run
from helpers.teacher_cache_cases import DIM, MODEL, losses, settings_of
from partialkd.config import MethodSection, ModelConfig, TermSection
from partialkd.config.base import leaves
from partialkd.config.load import parse_config
from partialkd.errors import ConfigError
from partialkd.models import build_model
from partialkd.models.saved import save_model
from partialkd.world.world import World

TERMS = sorted(section.model_fields["name"].annotation.__args__[0] for section in leaves(TermSection))  # type: ignore[union-attr]
SOFT = ("gkd", "logit_kd", "margin_t")
METHODS = sorted(
    section.model_fields["name"].annotation.__args__[0]  # type: ignore[union-attr]
    for section in leaves(MethodSection)
    if section.teacher_use != "none"
)


def settings(made: Path, name: str, method: str, terms: tuple[str, ...] = (), **teacher: Any) -> dict[str, Any]:
    """One step with a teacher whose embeddings are longer than the student's."""
    found = settings_of(made, name, method, **teacher)
    found["teacher"]["path"] = str(made / "longer.safetensors")
    if method == "teacher_centres":
        found["student"]["method"] |= {"margin": {"name": "adaface"}}
    found["data"] |= {"sampler": "half_pk", "images_per_identity": 2}
    found["student"] |= {"max_steps": 1, "terms": [{"name": term} for term in terms]}
    return found


def all_of(world: World, made: Path) -> dict[str, list[dict[str, Any]]]:
    found = {method: losses(world, settings(made, method, method, project_to=DIM)) for method in METHODS}
    for soft in SOFT:  # which share one pass over the centres, and so stand alone
        terms = (soft,) if soft != SOFT[0] else tuple(term for term in TERMS if term not in SOFT[1:])
        found[f"terms {soft}"] = losses(world, settings(made, soft, "margindistillation", terms, project_to=DIM))
    return found


@pytest.mark.slow
@pytest.mark.distributed
def test_every_method_and_term_takes_a_longer_teacher(teacher_caches: Path) -> None:
    assert {"adadistill", "margindistillation", "arcdistill"} <= set(METHODS)
    assert {"embedding", "rkd", "logit_kd", "fitnets", "angular"} <= set(TERMS)
    torch.manual_seed(0)
    config = ModelConfig.model_validate({**MODEL, "embedding_dim": DIM + 8})
    save_model(teacher_caches / "longer.safetensors", build_model(config, 32).eval(), config, 32)
    found = run(all_of, 1, teacher_caches)[0]
    for name, lines in found.items():
        assert [math.isfinite(line["loss"]) for line in lines] == [True], name
    logged = [(key, line[key]) for lines in found.values() for line in lines for key in line if key.startswith("term_")]
    assert sorted(key.split("_", 2)[2] for key, _ in logged) == TERMS
    assert all(math.isfinite(value) for _, value in logged)


def shorter(made: Path, name: str, term: str, *more: str) -> dict[str, Any]:
    """A student without method of a teacher's, and terms, of an embedding that is shorter than the teacher's."""
    longer = {**MODEL, "embedding_dim": DIM + 8}
    return settings(made, name, "arcface", (term, *more), model=longer, input={"size": 32})


@pytest.mark.parametrize("term", TERMS)
def test_each_term_takes_two_dimensions_or_says_what_to_set(term: str, tmp_path: Path) -> None:
    section = next(one for one in leaves(TermSection) if term in section_names(one))
    if section.same_dim:
        with pytest.raises(
            ConfigError, match=rf"embedding_dim.* must be the teacher's {DIM + 8} \(or set teacher\.proj"
        ):
            parse_config(shorter(tmp_path, "one", term))
    else:
        assert parse_config(shorter(tmp_path, "one", term)).student.terms[0].name == term


@pytest.mark.slow
@pytest.mark.distributed
def test_terms_that_compare_no_embeddings_need_no_projection(teacher_caches: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({**MODEL, "embedding_dim": DIM + 8})
    save_model(teacher_caches / "longer.safetensors", build_model(config, 32).eval(), config, 32)
    free = [name for section in leaves(TermSection) if not section.same_dim for name in section_names(section)]
    assert {"rkd", "logit_kd", "fitnets"} <= set(free)
    lines = run(losses, 1, shorter(teacher_caches, "free", *[term for term in free if term not in SOFT[1:]]))[0]
    logged = {key.split("_", 2)[2]: value for key, value in lines[-1].items() if key.startswith("term_")}
    assert set(logged) == set(free) - set(SOFT[1:])
    assert all(math.isfinite(value) for value in logged.values())


def section_names(section: type[TermSection]) -> tuple[str, ...]:
    return section.model_fields["name"].annotation.__args__  # type: ignore[union-attr]


def test_without_the_projection_the_key_is_named(tmp_path: Path) -> None:
    longer = {**MODEL, "embedding_dim": DIM + 8}
    told = rf"student\.model\.embedding_dim.* must be the teacher's {DIM + 8} \(or set teacher\.project_to = {DIM}\)"
    with pytest.raises(ConfigError, match=told):
        parse_config(settings(tmp_path, "short", "adadistill", model=longer))
