"""The configuration of a study: what its file may say, and messages that say what to do about what it may not."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import nn

from robust_plugins.balls import BALLS, Ball, Box
from robust_plugins.benchmark.messages import in_words, nearest
from robust_plugins.data import Dataset
from robust_plugins.errors import ArgumentError, RobustPluginsError

Norm = Literal["linf", "l2", "l1"]
Set = Literal["linf", "l2", "l1", "box"]
Backend = Literal["threading", "loky", "dask", "ray"]
Kept = Literal["examples", "inputs", "weights"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0)]
Radius = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[list[str], Field(min_length=1)]


class _Table(BaseModel):
    """A table of the file: unknown keys are refused, and numbers are numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)


class Training(_Table):
    """How a model is trained before it is studied; its weights are kept beside the store for the next time."""

    epochs: Count
    recipe: str = "standard"
    """With its parameters: `"ibp(gamma=0.5)"`."""
    eps: Radius | None = None
    """Of the recipe's ball; recipes other than `standard` need it."""
    norm: Norm = "linf"
    lr: Positive = 1e-3
    batch_size: Count = 64
    seed: Seed = 0


class Model(_Table):
    """A model under the name that the study gives it."""

    name: Name
    source: str | nn.Module
    """A network of the zoo, an ONNX, TorchScript or torch.export file, `package.module:factory`; from Python also a
    module itself."""
    weights: str | None = None
    """A state dict or safetensors."""
    train: Training | None = None
    seed: Seed = 0
    """Of the initial weights."""
    data: Names | None = None
    """The names of the data sets that it is for; None for all."""


class Data(_Table):
    """Samples of a data set."""

    name: Name
    source: str | Dataset | None = None
    """A registered data set with its parameters or an .npz file; None for the one of that name."""
    part: Literal["test", "train"] = "test"
    first: Annotated[int, Field(ge=0)] = 0
    samples: Count
    """At most so many, from the sample `first` on."""


class Balls(_Table):
    """Balls of one norm, or boxes, one for each radius."""

    norm: Set = "linf"
    eps: Annotated[list[Radius], Field(min_length=1)]
    """Of a box what each feature's radius is multiplied by."""
    clip: Annotated[list[Any], Field(min_length=2, max_length=2)] | None = None
    """The valid range of inputs; None for that of each data set. Of a box each end may be one for each feature."""
    data: Names | None = None
    """The names of the data sets that they are for; None for all."""
    radius: Any = None
    """Of a box: how far features move where eps is 1, one number or one for each; `inf` is anywhere in `clip`."""
    immutable: list[int] = []
    """Of a box, as the next two: features, counted in the flattened input, that stay."""
    one_hot: list[list[int]] = []
    """Groups of features of which one is 1 and the others are 0."""
    integers: list[int] = []
    """Features that are whole numbers."""

    @field_validator("clip", "radius", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Lists in the place of tensors, arrays and tuples, so that a store can keep them."""
        if hasattr(value, "tolist"):
            return value.tolist()
        return [cls._listed(one) for one in value] if isinstance(value, tuple | list) else value

    @model_validator(mode="after")
    def _possible(self) -> Balls:
        if self.norm == "box" and self.radius is None:
            raise ValueError("radius: missing; a box needs one number, or one for each feature")
        twice = [eps for eps in self.eps if self.eps.count(eps) > 1]
        if twice:
            raise ValueError(f"eps: {twice[0]:g} is there twice; name each radius once")
        own = [n for n in ("radius", "immutable", "one_hot", "integers") if getattr(self, n) not in (None, [])]
        if self.norm != "box" and own:
            raise ValueError(f'{own[0]}: goes with norm = "box"; leave it out, or set the norm')
        if self.norm != "box" and not all(isinstance(end, int | float) for end in self.clip or ()):
            raise ValueError('clip: accepted: two numbers; one for each feature goes with norm = "box"')
        self.ball(self.eps[0], None)
        return self

    def ball(self, eps: float, clip: tuple[float, float] | None) -> Ball:
        """The ball of one radius, for inputs in `clip` where the study says no other range."""
        valid: Any = clip if self.clip is None else (self.clip[0], self.clip[1])
        if self.norm != "box":
            return BALLS[self.norm](eps=eps, clip=valid)
        sides: dict[str, Any] = {"immutable": self.immutable, "one_hot": self.one_hot, "integers": self.integers}
        return Box(eps=eps, clip=valid, radius=self.radius, **sides)


class Component(_Table):
    """An attack or a certifier of decisions."""

    use: str
    """A registered name, with parameters where wanted: `"art:pgd(steps=40)"`."""
    name: Name | None = None
    """What the study calls it; None for `use`."""
    parameters: dict[str, Any] = {}
    """More of them, as a table."""
    timeout: Seconds | None = None
    """Seconds for each sample; None for the study's."""
    data: Names | None = None
    models: Names | None = None
    target: Literal["random", "least_likely"] | None = None
    """Of attacks: the class to be reached, `"random"` other than the label or the `"least_likely"`; None for any."""


class Explanation(Component):
    """An attack or a certifier of explanations."""

    of: Literal["logit", "margin", "loss"] = "logit"
    delta: Positive | None = None
    """The width allowed to each feature: of certifiers, which need one."""
    threshold: Radius | None = None
    """The relative deviation from which on an attack has succeeded; None where it is only measured."""
    radius: Radius = 0.0
    """The relative radius by which weights may be moved, too."""


class Poisoning(_Table):
    """A training, what a poisoner may do to its data, and who tries; asked at the samples of one data set."""

    name: Name
    model: Name
    """One of the study's models, untrained or a checkpoint to be trained on."""
    data: Name
    budget: str
    """As `robust-plugins poison` takes it: `"points=5,eps=0.01"`, `"removal(k=2)"`."""
    epochs: Count = 1
    batch_size: Count = 100
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = 0.1
    clip_gradient: Positive | None = None
    domain: Literal["box", "zonotope"] = "box"
    train_samples: Count | None = None
    """At most so many training samples, the first; None for all."""
    attacks: list[str] = []
    """Registered names; none for the standard ones."""
    timeout: Seconds = math.inf
    """Seconds for all of it."""


class Run(_Table):
    """Where and how the work is done; none of it changes an answer, but `batch_size`, by the draws of attacks."""

    backend: Backend = "threading"
    jobs: int = 1
    """Batches at once; -1 for one per core."""
    address: str | None = None
    """Of the Dask or Ray cluster; None starts a local one."""
    batch_size: Count = 100
    isolate: bool = True
    """Components run in processes of their own, which may crash and are killed at their timeout."""
    threads: Count = 1
    """Of each process."""
    device: str = "cpu"

    @model_validator(mode="after")
    def _checked(self) -> Run:
        if self.jobs < 1 and self.jobs != -1:
            raise ValueError("jobs: accepted: a number of at least 1, or -1 for one per core")
        if self.address is not None and self.backend not in ("dask", "ray"):
            raise ValueError('address: goes with backend = "dask" or "ray"; leave it out')
        if not self.isolate and self.backend == "threading" and self.jobs != 1:
            raise ValueError("isolate: threads without processes of their own would wait for each other; set jobs = 1")
        return self


class Configuration(_Table):
    """All of a study."""

    store: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")] = "study.sqlite"
    """Relative to the file of the study, or to the working folder without one."""
    seed: Seed | list[Seed] = 0
    """Of attacks; several are run one after the other."""
    timeout: Seconds = 60.0
    """Seconds for each sample, `inf` for any number: what has a parameter `timeout` is given it and stops itself; other
    components are killed when the time of their batch is over."""
    keep: list[Kept] = []
    """In the store: `examples`, adversarial examples and witnesses; `inputs` and `weights`, so that whoever has the
    store alone can derive its records again."""
    models: Annotated[list[Model], Field(min_length=1)]
    data: Annotated[list[Data], Field(min_length=1)]
    balls: list[Balls] = []
    components: list[Component] = []
    explanations: list[Explanation] = []
    poisoning: list[Poisoning] = []
    run: Run = Run()

    @property
    def seeds(self) -> list[int]:
        """All of them."""
        return [self.seed] if isinstance(self.seed, int) else list(self.seed)

    @model_validator(mode="after")
    def _consistent(self) -> Configuration:
        models, data = [m.name for m in self.models], [d.name for d in self.data]
        asked = [*self.components, *self.explanations]
        for table, names in (("models", models), ("data", data), ("poisoning", [p.name for p in self.poisoning])):
            _once(table, names)
        _once("components and explanations", [c.name or c.use for c in asked])
        for where, wanted, known in (
            *((f"models.{m.name}.data", m.data or [], data) for m in self.models),
            *((f"balls[{i}].data", b.data or [], data) for i, b in enumerate(self.balls)),
            *((f"{c.use}.data", c.data or [], data) for c in asked),
            *((f"{c.use}.models", c.models or [], models) for c in asked),
            *((f"poisoning.{p.name}.model", [p.model], models) for p in self.poisoning),
            *((f"poisoning.{p.name}.data", [p.data], data) for p in self.poisoning),
        ):
            for name in wanted:
                if name not in known:
                    raise ValueError(
                        f"{where}: unknown name {name!r}; accepted: {', '.join(known)}{nearest(name, known)}"
                    )
        if asked and not self.balls:
            raise ValueError("balls: missing; components need [[balls]] with a norm and radii eps")
        if not asked and not self.poisoning:
            raise ValueError(
                "components: missing; name at least one in [[components]], [[explanations]] or [[poisoning]]"
            )
        if isinstance(self.seed, list) and (not self.seed or len(set(self.seed)) < len(self.seed)):
            raise ValueError("seed: accepted: one number, or several different ones")
        return self


def read_configuration(path: str | Path) -> Configuration:
    """The study that a TOML file describes. Raises ArgumentError naming the file, the key and what is accepted."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")  # some editors begin a file with a mark
        content = tomllib.loads(text)
    except FileNotFoundError:
        raise ArgumentError(
            "study", f"{str(path)!r}: no file", accepted="a study in TOML", hint="`bench init` writes an example."
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ArgumentError(
            "study", f"{str(path)!r}: {error}", accepted="a study in TOML", hint="`bench init` writes an example."
        ) from error
    return checked(content, f"{path}")


def checked(content: Mapping[str, Any], where: str) -> Configuration:
    """`content` as a configuration; raises ArgumentError, whose message begins with `where`, the file."""
    try:
        return Configuration.model_validate(dict(content))
    except ValidationError as error:
        said = [in_words(dict(fault), Configuration) for fault in error.errors()]
        raise ConfigurationError(f"{where}: " + "\n".join(said[:5])) from None


class ConfigurationError(RobustPluginsError, ValueError):
    """A study says something that cannot be used; the message names the file, the key and what is accepted."""


def _once(table: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{table}: the name {twice[0]!r} is there twice; give each a name of its own")
