"""The config's types: every key of a study, what it holds and its default."""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Any, Literal

import pydantic

from sharpflat import registry
from sharpflat.validation import Count, Finite, NaturalNumber, NonNegative, Positive, PositiveDecay

Policy = Literal["batch", "running", "recalibrated"]
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**31)]  # JAX's integers have 32 bits
Spec = str | dict[str, Any]
FOLDER_NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"
Values = Annotated[list[Any], pydantic.Field(min_length=1)]


def _not_bare(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"expected a mapping, write {{name: {value}}}")
    return value


def _folder_name(text: str) -> str:
    if not re.fullmatch(FOLDER_NAME, text):
        raise ValueError("is a folder's name: a letter or digit, then also '.', '_' and '-'")
    return text


FolderName = Annotated[
    str,
    pydantic.AfterValidator(_folder_name),  # whose words are plainer than those of a pattern
    pydantic.Field(json_schema_extra={"pattern": f"^{FOLDER_NAME}$"}),
]
Named = Annotated[dict[str, Any], pydantic.BeforeValidator(_not_bare)]


class Strict(pydantic.BaseModel):
    """Nothing unknown, nothing converted, nothing infinite."""

    model_config = pydantic.ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False
    )


class Stop(Strict):
    """When to end before `epochs`: see `sharpflat.training.Stopping`."""

    train_loss: Positive | None = None
    patience: Count | None = None
    improvement: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0


class LearningRateRule(Strict):
    """How the learning rate follows the batch size: see `sharpflat.training.scaling`."""

    rule: Literal["linear", "sqrt", "none"]
    reference: Count


class RegimeAdaptation(Strict):
    """About as many updates as at the reference: epochs grow with the batch, as a whole number.

    Hoffer et al. (2017).
    """

    reference: Count


class Ema(Strict):
    """The exponential moving average of the parameters, over about 1 / (1 − decay) updates."""

    decay: PositiveDecay


class Swa(Strict):
    """The mean of the parameters at the ends of epochs: from `start` on, every so many."""

    start: Count
    every: Count = 1


class Conservative(Strict):
    """Steps on each batch with λ/2 ‖θ − θ_k‖² beside its loss: see `conservative` in training."""

    strength: NonNegative = 1e-3
    steps: Count = 3


class Augment(Strict):
    """Pictures flipped, turned by up to so many degrees, shifted by up to a part of their side.

    Keskar et al. (2017), appendix E: flips, up to 10 degrees, up to 0.2.
    """

    flip: bool = False
    rotate: Annotated[float, pydantic.Field(ge=0, le=180)] = 0.0
    shift: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.0

    @pydantic.model_validator(mode="after")
    def _asks_for_something(self) -> Augment:
        if not (self.flip or self.rotate or self.shift):
            raise ValueError("changes nothing; set flip, rotate or shift, or leave it out")
        return self


class LabelNoise(Strict):
    """A fraction of the training labels replaced by another class.

    Drawn once by `draw`, for training and for what is measured on it; with `resample` at every
    update instead (Damian et al., 2021), by the run's seed and `draw`, and what is measured has the
    data set's own labels.
    """

    fraction: Annotated[float, pydantic.Field(gt=0, le=1)]
    draw: Seed = 0
    resample: bool = False


class Attack(Strict):
    """Adversarial training: see `sharpflat.training.Adversarial`."""

    epsilon: Positive = 0.1
    share: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.5
    norm: Literal["linf", "l2"] = "linf"
    steps: Count = 1


class Every(Strict):
    """How often something is tracked; at the start too, but for what reads an optimizer's state."""

    every: Count = 1
    unit: Literal["epochs", "updates"] = "epochs"


class Looked(Strict):
    """What tracked metrics are of: at most so many training examples, the first ones."""

    examples: Count = 1000
    chunk: Count = 1000
    batch_norm: Policy = "batch"


class InitFrom(Strict):
    """A run of the same root, by the beginning of its id, and an epoch after which it was kept.

    Without an epoch its end.
    """

    run: Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]+$")]
    epoch: NaturalNumber | None = None


class Train(Strict):
    """How a run is trained.

    `track` names what is watched meanwhile, at the parameters of the time: `top_eigenvalue`,
    `batch_losses`, `snapshots`, or any metric, each alone or as `{name: {every: 2, unit: epochs,
    ...}}` with arguments of its own. `init_from` starts from another run's parameters and
    batch-norm averages.

    `warmup` is in epochs and comes before the schedule; `clip` is the gradient's largest norm;
    `gradient_penalty` the c of L + c/2 ‖∇L‖², L with the `adversarial` loss in it. A batch is
    passed through in `accumulate` parts, each of which batch norm normalises by itself; so it does
    every `ghost_batch_norm` examples. With `ema` or `swa` that average of the parameters is
    evaluated, kept and measured.
    `matmul_precision` (JAX's names) and `compute_dtype` are of training only: what is evaluated and
    measured is in float32, as parameters and averages always are.
    """

    batch_size: Count
    epochs: Count
    optimizer: Named
    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"
    drop_last: bool = False
    stop: Stop = Stop()
    track: list[Spec] = []
    init_from: InitFrom | None = None
    eval_every: Count | None = None
    schedule: Named | None = None
    warmup: NonNegative = 0.0
    learning_rate_rule: LearningRateRule | None = None
    regime_adaptation: RegimeAdaptation | None = None
    clip: Positive | None = None
    gradient_penalty: NonNegative | None = None
    accumulate: Count = 1
    ghost_batch_norm: Count | None = None
    ema: Ema | None = None
    swa: Swa | None = None
    conservative: Conservative | None = None
    augment: Augment | None = None
    label_noise: LabelNoise | None = None
    adversarial: Attack | None = None
    matmul_precision: (
        Literal["default", "high", "highest", "bfloat16", "tensorfloat32", "float32"] | None
    ) = None
    compute_dtype: Literal["bfloat16"] | None = None


class Measure(Strict):
    """What is measured, and on which objective.

    `metrics: all` stands for every metric there is, with its defaults; `seeds` restricts the
    measurement to some of the study's seeds (all of them by default).
    """

    split: Literal["train", "test"] = "train"
    examples: Count | None = None
    chunk: Count = 1000
    batch_norm: Annotated[list[Policy], pydantic.Field(min_length=1)] = ["running"]
    metrics: list[Spec] | Literal["all"] = []
    seed: Seed = 0
    seeds: list[Seed] | None = None

    @property
    def specs(self) -> list[Spec]:
        """The metrics, one by one."""
        return list(registry.metrics) if self.metrics == "all" else list(self.metrics)


class Line(Strict):
    """f((1 − α) start + α end) between the smallest and the largest value of a swept key.

    `where` picks the runs by their other swept keys, if there are several of one seed.
    """

    key: str = "train.batch_size"
    seed: Seed = 0
    points: Annotated[int, pydantic.Field(ge=2)] = 25
    alpha: Annotated[list[Finite], pydantic.Field(min_length=2, max_length=2)] = [-1.0, 2.0]
    where: dict[str, Any] = {}
    batch_norm: Literal["batch", "recalibrated"] = "recalibrated"
    chunk: Count = 1000


class Landscape(Strict):
    """One landscape."""

    line: Line


class Config(Strict):
    """A study, as written; `cells` gives its runs."""

    model_config = pydantic.ConfigDict(use_attribute_docstrings=True)

    study: FolderName
    """Its name, that of its folder below `studies`."""
    plugins: list[str] = []
    """Python files of your own entries; a relative path is from the folder of this file."""
    dataset: Named
    """`{name: ..., argument: ...}`; `sharpflat list datasets` has the names."""
    model: Named
    """`{name: ..., argument: ...}`; `sharpflat list models` has the names."""
    train: Train
    """How each run is trained."""
    seeds: Count | Annotated[list[Seed], pydantic.Field(min_length=1)] = 1
    """How many, from 0 on, or which; each setting of the sweep is trained with every one."""
    sweep: dict[str, Values] | list[dict[str, Any]] = {}
    """Dotted keys with the values that they take, in all combinations; or a list of settings."""
    together: bool | None = None
    """True trains runs that differ only in seed, or in numbers of their optimizer, as one program;
    false trains one run after another. By default as one program on an accelerator; on a CPU each
    run alone, one on each core, which is faster there but for very small networks."""
    data_parallel: bool | None = None
    """Whether all devices share the examples of each pass; by default where they are several
    accelerators, or of several processes."""
    dataset_on_device: bool | None = None
    """Whether the data set stays on the device while it trains, or is streamed from the host; by
    default where it fits into half of the device's memory."""
    checkpoint_seconds: Positive | None = None
    """Between two checkpoints of a training; 60 by default."""
    measure: Measure | list[Measure] = Measure()
    """What is measured at each minimum, a block or a list of them."""
    landscape: list[Landscape] = []
    """Lines through the loss, `{kind: {argument: ...}}`."""
    figures: list[Spec] | None = None
    """Names, or `{name: {argument: ...}}`; null for all that the study has what is needed for."""

    @property
    def seed_list(self) -> list[int]:
        """The seeds, as a list."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    @property
    def measures(self) -> list[Measure]:
        """The measure blocks, one or more."""
        return [self.measure] if isinstance(self.measure, Measure) else list(self.measure)

    @property
    def swept_keys(self) -> list[str]:
        """Dotted names of what varies between runs, `train.batch_size` always first."""
        rows = [self.sweep] if isinstance(self.sweep, dict) else self.sweep
        keys = dict.fromkeys(key for row in rows for key in row)
        return ["train.batch_size", *(key for key in keys if key != "train.batch_size")]

    def settings(self) -> list[dict[str, Any]]:
        """What each cell of the sweep sets, by dotted key."""
        if isinstance(self.sweep, list):
            return [dict(row) for row in self.sweep] or [{}]
        return [
            dict(zip(self.sweep, values, strict=True))
            for values in itertools.product(*self.sweep.values())
        ]
