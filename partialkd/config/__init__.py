"""Typed, frozen, strict configuration: every key with its type, range, default and unit.

A file is one complete run; reading files and saying what is wrong with them: partialkd.config.load.
"""

from partialkd.config.data import ArchiveConfig, AugmentConfig, DataConfig, PartConfig, ProceduralConfig
from partialkd.config.job import Config, EvaluateConfig
from partialkd.config.margins import (
    AdaFaceMarginConfig,
    CurricularMarginConfig,
    Elastic,
    ElasticArcMarginConfig,
    ElasticCosMarginConfig,
    MagFaceMarginConfig,
    MarginSection,
    SphereMarginConfig,
)
from partialkd.config.methods import (
    AdaDistillConfig,
    ArcDistillConfig,
    ArcFaceConfig,
    CombinedMargin,
    CosDistillConfig,
    CosFaceConfig,
    MarginDistillationConfig,
    MethodConfig,
    MethodSection,
    TeacherCentresConfig,
    TrainedCentresConfig,
)
from partialkd.config.models import InputConfig, ModelConfig
from partialkd.config.run import DistConfig, HealthConfig, RunConfig
from partialkd.config.teacher import EnsembleInputs, MemberConfig, NoiseConfig, TeacherConfig
from partialkd.config.terms import EmbeddingTermConfig, TermSection
from partialkd.config.training import (
    CentresConfig,
    OptimizerConfig,
    PhaseConfig,
    RateFactors,
    ScheduleConfig,
    sampled_share,
)

__all__ = [
    "AdaDistillConfig",
    "AdaFaceMarginConfig",
    "ArcDistillConfig",
    "ArcFaceConfig",
    "ArchiveConfig",
    "AugmentConfig",
    "CentresConfig",
    "CombinedMargin",
    "Config",
    "CosDistillConfig",
    "CosFaceConfig",
    "CurricularMarginConfig",
    "DataConfig",
    "DistConfig",
    "Elastic",
    "ElasticArcMarginConfig",
    "ElasticCosMarginConfig",
    "EmbeddingTermConfig",
    "EnsembleInputs",
    "EvaluateConfig",
    "HealthConfig",
    "InputConfig",
    "MagFaceMarginConfig",
    "MarginDistillationConfig",
    "MarginSection",
    "MemberConfig",
    "MethodConfig",
    "MethodSection",
    "ModelConfig",
    "NoiseConfig",
    "OptimizerConfig",
    "PartConfig",
    "PhaseConfig",
    "ProceduralConfig",
    "RateFactors",
    "RunConfig",
    "ScheduleConfig",
    "SphereMarginConfig",
    "TeacherCentresConfig",
    "TeacherConfig",
    "TermSection",
    "TrainedCentresConfig",
    "sampled_share",
]
