"""The typed experiment: YAML in, validated objects out. Imports no torch."""

from m3ae_scale.config.load import Origins, annotated, load_experiment, save_experiment
from m3ae_scale.config.schema import (
    AugmentConfig,
    BatchConfig,
    DataConfig,
    EngineConfig,
    Experiment,
    KernelConfig,
    LossConfig,
    MaskConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    SourceConfig,
    Span,
    TrackingConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig",
    "BatchConfig",
    "DataConfig",
    "EngineConfig",
    "Experiment",
    "KernelConfig",
    "LossConfig",
    "MaskConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Origins",
    "ParallelConfig",
    "RunConfig",
    "SourceConfig",
    "Span",
    "TrackingConfig",
    "TrainConfig",
    "annotated",
    "load_experiment",
    "save_experiment",
]
