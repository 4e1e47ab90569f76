"""Which public name is explained on which page of the reference."""

from __future__ import annotations

GROUPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("balls", "Balls and intervals", ("Ball", "Linf", "L2", "L1", "Box", "Interval", "margin_spec", "apply_spec")),
    (
        "attacks",
        "Attacks",
        (
            "attack", "attacks", "Attack", "AttackResult", "strongest", "minimal", "averaged", "straight_through",
            "from_art", "to_art",
        ),
    ),
    (
        "certifiers",
        "Certifiers and verification",
        (
            "certifier", "certifiers", "Certifier", "Certificate", "Verdict", "cascade", "verify", "verify_property",
            "Halfspaces",
        ),
    ),
    (
        "brackets",
        "Brackets and pages",
        (
            "Bracket", "compare", "Comparison", "BallsComparison", "LabelsComparison", "ErrorComparison", "Crossing",
            "critical_radius",
            "CriticalRadius", "write_report",
        ),
    ),
    (
        "explanations",
        "Explanations",
        (
            "explanation_certifier", "explanation_certifiers", "ExplanationCertifier", "ExplanationCertificate",
            "explanation_attack", "explanation_attacks", "ExplanationAttack", "ExplanationAttackResult", "Explained",
            "compare_explanations", "ExplanationComparison", "write_explanation_report", "explain",
            "explain.Attribution", "explain.Saliency", "explain.InputXGradient", "explain.IntegratedGradients",
            "explain.SmoothGrad", "explain.Score", "explain.sensitivity_max", "explain.max_sensitivity",
            "explain.local_lipschitz",
        ),
    ),
    (
        "poisoning",
        "Poisoned training data",
        (
            "PoisoningBudget", "abstract_gradient_training", "PoisoningRun", "PoisoningEpoch", "PrivatePrediction",
            "SGD", "Adam", "AdamW", "Clip", "NormClip", "poisoning_attack", "poisoning_attacks", "PoisoningAttack",
            "RandomPoisoning", "LossAscent", "GradientAlignment", "CoordinatePoisoning", "poisoned_trainings",
            "PoisonedTrainings", "poisoning_bracket", "PoisoningBracket", "poison_and_train", "PoisonedLearning",
            "partition_aggregation", "PartitionEnsemble", "PartitionCertificate",
        ),
    ),
    (
        "training",
        "Training",
        (
            "MixedLoss", "GradientCertLoss", "Ramp", "ibp_initialisation", "recipe", "recipes", "fit",
            "TrainingRecord", "Scores", "train",
        ),
    ),
    (
        "data",
        "Data, models and studies",
        ("dataset", "datasets", "Dataset", "model", "models", "load_model", "normalised", "Study", "load_study"),
    ),
    ("registry", "Plugins", ("hookimpl", "register", "unregister", "plugins", "Backend")),
    (
        "errors",
        "Errors",
        (
            "RobustPluginsError", "ArgumentError", "UnknownNameError", "PluginError", "UnsupportedModelError",
            "ComponentError", "TrainingError",
        ),
    ),
)  # fmt: skip
