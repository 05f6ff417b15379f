"""What a claim and a scale are: configs/claims/CLAIM.yaml and configs/claims/scales/SCALE.yaml, read and checked."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_validator

from m3ae_scale.config.load import read_yaml
from m3ae_scale.config.schema import Section
from m3ae_scale.config.shipped import shipped
from m3ae_scale.errors import InputError

M = TypeVar("M", bound=Section)


class Arm(Section):
    """One way to pretrain: what it changes of the scale's experiment."""

    set: dict[str, Any] = {}  # key of the experiment -> value, at every scale
    at: dict[str, dict[str, Any]] = {}  # scale -> more of them
    scales: list[str] | None = None  # that the arm exists at; None: all
    supervised: bool = False  # trained from scratch on the labels of the same images, instead of pretrained


class Comparison(Section):
    """Two arms, of which the claim says that the first is better."""

    better: str
    worse: str
    measure: str = "top1"  # a metric of the cells


class Claim(Section):
    """One claim of the paper."""

    claim: str
    statement: str
    source: str  # where the paper says so
    arms: dict[str, Arm]
    compare: list[Comparison] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> "Claim":
        for comparison in self.compare:
            for arm in (comparison.better, comparison.worse):
                if arm not in self.arms:
                    raise ValueError(f"compare: {arm!r} is no arm; expected one of {', '.join(self.arms)}")
        return self

    def arms_at(self, scale: str) -> dict[str, Arm]:
        """Return the arms that exist at `scale`."""
        return {name: arm for name, arm in self.arms.items() if arm.scales is None or scale in arm.scales}


class ProbeConfig(Section):
    """What every cell's features are measured on: labelled sets."""

    train: str
    test: str
    shifted: str | None = None  # the same classes, looking different
    unknown: str | None = None  # other classes
    label: str | None = None
    pool: str = "mean"
    linear: dict[str, Any] = {}  # changes of LinearRecipe


class Scale(Section):
    """How large everything is: "{data}" in a path is where `data` is written."""

    scale: str
    about: str
    seeds: list[int] = Field(min_length=2)
    data: dict[str, dict[str, Any]] = {}  # name -> settings of `m3ae-scale data synthesize`
    experiment: dict[str, Any]  # what the arms change
    probe: ProbeConfig
    supervised: dict[str, Any] = {}  # changes of FinetuneRecipe, for arms that are supervised
    supervised_on: str | None = None  # the labelled set that these are trained on


def read_claim(name: str) -> Claim:
    """Read a claim by its name, or the YAML file of one. Raises InputError."""
    path = _find(name, "claims")
    return _validated(path, _values(path, Claim), Claim)


def read_scale(name: str) -> Scale:
    """Read a scale by its name, or the YAML file of one. Raises InputError.

    What a file that says `like: OTHER` leaves out is as in that scale.
    """
    path = _find(name, "claims/scales")
    return _validated(path, _scale_values(path), Scale)


def claims() -> list[str]:
    """Return the names of all claims that come with the project."""
    return sorted(path.stem for path in _shipped("claims").glob("*.yaml"))


def _shipped(folder: str) -> Path:
    found = shipped(folder)
    if found is None:
        raise InputError(f"configs/{folder}: not found beside the code; give the path of a YAML file")
    return found


def _find(name: str, folder: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    path = _shipped(folder) / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise InputError(f"{name}: no such {'claim' if folder == 'claims' else 'scale'}; expected one of {known}")
    return path


def _scale_values(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path in above:
        raise InputError(f"{path}: like: leads back here, over {', '.join(map(str, above))}; name a scale of its own")
    values = _values(path, Scale)
    like = values.pop("like", None)
    return values if like is None else _merged(_scale_values(_find(str(like), "claims/scales"), (*above, path)), values)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`; mappings in both are merged in turn."""
    merged = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _values(path: Path, model: type[Section]) -> dict[str, Any]:
    expected = f"keys such as {', '.join(list(model.model_fields)[:3])}"
    return read_yaml(path, f"the {model.__name__.lower()}", expected)[0]


def _validated(path: Path, values: dict[str, Any], model: type[M]) -> M:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {key}: {first['msg'].removeprefix('Value error, ')}") from None
