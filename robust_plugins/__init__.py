"""Attacks, certificates, robust training and poisoning bounds for PyTorch models, behind one interface.

Every quantity is a bracket: what an attack achieved, and what a certifier proved.
"""

from robust_plugins import interruption as interruption  # first: it is about the imports below
from robust_plugins.adapters.art.from_art import from_art
from robust_plugins.adapters.art.to_art import to_art
from robust_plugins.adapters.onnx.verification import verify
from robust_plugins.balls import L1, L2, Ball, Box, Linf
from robust_plugins.benchmark.study import Study, load_study
from robust_plugins.brackets import (
    BallsComparison,
    Comparison,
    CriticalRadius,
    Crossing,
    ErrorComparison,
    ExplanationComparison,
    LabelsComparison,
    PoisonedLearning,
    PoisoningBracket,
    compare,
    compare_explanations,
    critical_radius,
    poison_and_train,
    poisoning_bracket,
    write_explanation_report,
    write_report,
)
from robust_plugins.data import Dataset, dataset, datasets
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.attacks.minimal import minimal
from robust_plugins.decisions.attacks.portfolio import strongest
from robust_plugins.decisions.attacks.surrogates import averaged, straight_through
from robust_plugins.decisions.cascade import cascade
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.decisions.registered import attack, attacks, certifier, certifiers
from robust_plugins.decisions.results import AttackResult, Certificate, Verdict
from robust_plugins.decisions.specifications import apply_spec, margin_spec
from robust_plugins.decisions.verifier import Halfspaces, verify_property
from robust_plugins.errors import (
    ArgumentError,
    ComponentError,
    PluginError,
    RobustPluginsError,
    TrainingError,
    UnknownNameError,
    UnsupportedModelError,
)
from robust_plugins.explanations import (
    Explained,
    ExplanationAttack,
    ExplanationAttackResult,
    ExplanationCertificate,
    ExplanationCertifier,
    explain,
    explanation_attack,
    explanation_attacks,
    explanation_certifier,
    explanation_certifiers,
)
from robust_plugins.harness.bracket import Bracket
from robust_plugins.intervals import Interval
from robust_plugins.losses import GradientCertLoss, MixedLoss, Ramp, ibp_initialisation, recipe, recipes
from robust_plugins.networks import load_model, model, normalised, train
from robust_plugins.networks.loading import models
from robust_plugins.poisoning import (
    SGD,
    Adam,
    AdamW,
    Clip,
    CoordinatePoisoning,
    GradientAlignment,
    LossAscent,
    NormClip,
    PartitionCertificate,
    PartitionEnsemble,
    PoisonedTrainings,
    PoisoningAttack,
    PoisoningBudget,
    PoisoningEpoch,
    PoisoningRun,
    PrivatePrediction,
    RandomPoisoning,
    abstract_gradient_training,
    partition_aggregation,
    poisoned_trainings,
    poisoning_attack,
    poisoning_attacks,
)
from robust_plugins.registry.hookspecs import Backend, hookimpl
from robust_plugins.registry.registry import plugins, register, unregister
from robust_plugins.training import Scores, TrainingRecord, fit

__version__ = "0.1.0"

__all__ = [
    "L1",
    "L2",
    "SGD",
    "Adam",
    "AdamW",
    "ArgumentError",
    "Attack",
    "AttackResult",
    "Backend",
    "Ball",
    "BallsComparison",
    "Box",
    "Bracket",
    "Certificate",
    "Certifier",
    "Clip",
    "Comparison",
    "ComponentError",
    "CoordinatePoisoning",
    "CriticalRadius",
    "Crossing",
    "Dataset",
    "ErrorComparison",
    "Explained",
    "ExplanationAttack",
    "ExplanationAttackResult",
    "ExplanationCertificate",
    "ExplanationCertifier",
    "ExplanationComparison",
    "GradientAlignment",
    "GradientCertLoss",
    "Halfspaces",
    "Interval",
    "LabelsComparison",
    "Linf",
    "LossAscent",
    "MixedLoss",
    "NormClip",
    "PartitionCertificate",
    "PartitionEnsemble",
    "PluginError",
    "PoisonedLearning",
    "PoisonedTrainings",
    "PoisoningAttack",
    "PoisoningBracket",
    "PoisoningBudget",
    "PoisoningEpoch",
    "PoisoningRun",
    "PrivatePrediction",
    "Ramp",
    "RandomPoisoning",
    "RobustPluginsError",
    "Scores",
    "Study",
    "TrainingError",
    "TrainingRecord",
    "UnknownNameError",
    "UnsupportedModelError",
    "Verdict",
    "abstract_gradient_training",
    "apply_spec",
    "attack",
    "attacks",
    "averaged",
    "cascade",
    "certifier",
    "certifiers",
    "compare",
    "compare_explanations",
    "critical_radius",
    "dataset",
    "datasets",
    "explain",
    "explanation_attack",
    "explanation_attacks",
    "explanation_certifier",
    "explanation_certifiers",
    "fit",
    "from_art",
    "hookimpl",
    "ibp_initialisation",
    "load_model",
    "load_study",
    "margin_spec",
    "minimal",
    "model",
    "models",
    "normalised",
    "partition_aggregation",
    "plugins",
    "poison_and_train",
    "poisoned_trainings",
    "poisoning_attack",
    "poisoning_attacks",
    "poisoning_bracket",
    "recipe",
    "recipes",
    "register",
    "straight_through",
    "strongest",
    "to_art",
    "train",
    "unregister",
    "verify",
    "verify_property",
    "write_explanation_report",
    "write_report",
]
