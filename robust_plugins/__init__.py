"""Attacks, certificates, robust training and poisoning bounds for PyTorch models, behind one interface.

Every quantity is a bracket: what an attack achieved, and what a certifier proved.
"""

# `rp.attacks()`, `rp.certifiers()`, `rp.models()` and `rp.plugins()` share their names with submodules. Importing a
# submodule binds its name here, once; importing them first lets the functions below have the last word.
import robust_plugins.attacks
import robust_plugins.certifiers
import robust_plugins.models  # noqa: F401
from robust_plugins.attacks import from_art
from robust_plugins.balls import L1, L2, Ball, Linf
from robust_plugins.benchmark import (
    Comparison,
    ExplanationComparison,
    compare,
    compare_explanations,
    write_explanation_report,
    write_report,
)
from robust_plugins.data import Dataset, dataset
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
from robust_plugins.hookspecs import Backend, hookimpl
from robust_plugins.interfaces import Attack, Certifier
from robust_plugins.intervals import Interval
from robust_plugins.losses import (
    GradientCertLoss,
    MixedLoss,
    Ramp,
    Scores,
    TrainingRecord,
    fit,
    ibp_initialisation,
    recipe,
    recipes,
)
from robust_plugins.models import load_model, model, train
from robust_plugins.plugins import (
    attack,
    attacks,
    certifier,
    certifiers,
    datasets,
    models,
    plugins,
    register,
    unregister,
)
from robust_plugins.poisoning import (
    SGD,
    Adam,
    AdamW,
    Clip,
    CoordinatePoisoning,
    GradientAlignment,
    LossAscent,
    NormClip,
    PoisonedTrainings,
    PoisoningAttack,
    PoisoningBracket,
    PoisoningBudget,
    PoisoningEpoch,
    PoisoningRun,
    PrivatePrediction,
    RandomPoisoning,
    abstract_gradient_training,
    poisoned_trainings,
    poisoning_bracket,
)
from robust_plugins.results import AttackResult, Certificate, Verdict
from robust_plugins.specifications import apply_spec, margin_spec

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
    "Certificate",
    "Certifier",
    "Clip",
    "Comparison",
    "ComponentError",
    "CoordinatePoisoning",
    "Dataset",
    "Explained",
    "ExplanationAttack",
    "ExplanationAttackResult",
    "ExplanationCertificate",
    "ExplanationCertifier",
    "ExplanationComparison",
    "GradientAlignment",
    "GradientCertLoss",
    "Interval",
    "Linf",
    "LossAscent",
    "MixedLoss",
    "NormClip",
    "PluginError",
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
    "TrainingError",
    "TrainingRecord",
    "UnknownNameError",
    "UnsupportedModelError",
    "Verdict",
    "abstract_gradient_training",
    "apply_spec",
    "attack",
    "attacks",
    "certifier",
    "certifiers",
    "compare",
    "compare_explanations",
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
    "margin_spec",
    "model",
    "models",
    "plugins",
    "poisoned_trainings",
    "poisoning_bracket",
    "recipe",
    "recipes",
    "register",
    "train",
    "unregister",
    "write_explanation_report",
    "write_report",
]
