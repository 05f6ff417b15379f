"""What an experiment is: one section a class, each key with its meaning, unit and default."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_serializer, model_validator

from m3ae_scale.sizes import SIZES, Tower

Ratio = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
Channels = tuple[float, float, float]


class Section(BaseModel):
    """A frozen section of the experiment in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Span(Section):
    """A length of training: "100 epochs", "20000 steps" or "5e6 samples"."""

    count: float
    unit: Literal["steps", "epochs", "samples"]

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str | int | float):
            return value
        match = re.fullmatch(
            r"\s*([0-9][0-9_.]*(?:e[+-]?[0-9]+)?)\s*(step|epoch|sample)s?\s*", str(value), re.IGNORECASE
        )
        if match is None:
            raise ValueError('expected a number and a unit, as in "100 epochs", "20000 steps" or "5e6 samples"')
        return {"count": float(match[1].replace("_", "")), "unit": match[2].lower() + "s"}

    @model_serializer
    def _text(self) -> str:
        return f"{int(self.count) if self.count.is_integer() else self.count} {self.unit}"

    def steps(self, global_batch: int, samples_per_epoch: int) -> int:
        """Optimizer steps in this span, where a step takes `global_batch` samples."""
        if self.unit == "steps":
            return int(self.count)
        if self.unit == "samples":
            return int(self.count) // global_batch
        return int(self.count * samples_per_epoch) // global_batch


class TowerConfig(Section):
    """The shape of one transformer."""

    dim: Positive
    depth: Positive
    heads: Positive
    mlp_dim: Positive

    @model_validator(mode="after")
    def _check(self) -> "TowerConfig":
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} does not divide by heads {self.heads}")
        if self.dim % 4:
            raise ValueError(f"dim {self.dim} must be a multiple of 4: a 2-D sin-cos position has four parts")
        return self

    @property
    def shape(self) -> Tower:
        """The tower as a plain record."""
        return Tower(self.dim, self.depth, self.heads, self.mlp_dim)


class ModelConfig(Section):
    """The masked autoencoder: a named size, or both towers written out; a written key overrides the size's."""

    size: str | None = None
    encoder: TowerConfig
    decoder: TowerConfig
    image_size: Positive = 256  # pixels, square
    patch: Positive = 16  # pixels, square
    text_length: Positive = 64  # word pieces kept of a caption
    unpaired_text_length: Positive = 256  # word pieces kept of a text without image
    output_head_depth: Annotated[int, Field(ge=0)] = 0  # hidden layers of the output heads; 0: linear
    type_embedding: bool = True  # a learned embedding per modality, in both towers
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0  # chance that a sample skips a residual branch
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    image_codebook: Annotated[int, Field(ge=0)] = 0  # entries of the image tokenizer; 0: predict pixels

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("size") is None:
            return value
        name = value["size"]
        if name not in SIZES:
            raise ValueError(f"size: found {name!r}, expected one of {', '.join(SIZES)}")
        size = SIZES[name]
        filled = dict(value)
        for part, tower in (("encoder", size.encoder), ("decoder", size.decoder)):
            filled[part] = {**vars(tower), **(value.get(part) or {})}
        return filled

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.image_size % self.patch:
            raise ValueError(f"image_size {self.image_size} does not divide by patch {self.patch}")
        return self

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return self.grid**2

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch: rows x columns x channels."""
        return self.patch**2 * 3


class MaskConfig(Section):
    """Which tokens are hidden from the encoder (paper, section 3.1)."""

    image_ratio: Ratio = 0.75
    text_ratio: Ratio = 0.75
    # per_sample: each sample its own mask over its real tokens. reference: one mask for the whole batch, drawn
    # over text_length positions with padding counted, as m3ae_public does.
    rule: Literal["per_sample", "reference"] = "per_sample"


class LossConfig(Section):
    """Weights of the losses, and which tokens they see."""

    image: float = 1.0
    text: float = 0.5
    unpaired_text: float = 0.5
    all_image_tokens: bool = False  # predict visible patches too
    all_text_tokens: bool = False


class SourceConfig(Section):
    """A set of tar shards of one kind."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    shards: str | list[str]  # a folder, a glob, a brace pattern, a URL, or a list of them
    kind: Literal["paired", "image", "text"] = "paired"
    weight: Annotated[float, Field(gt=0)] = 1.0  # share of the samples of an epoch, relative to the other sources
    image_drop: Ratio = 0.0  # share of pairs whose image is left out
    text_drop: Ratio = 0.0  # share of pairs whose text is left out

    @model_validator(mode="after")
    def _check(self) -> "SourceConfig":
        if self.image_drop + self.text_drop > 1:
            raise ValueError(f"image_drop {self.image_drop} and text_drop {self.text_drop} add up to more than 1")
        return self


class AugmentConfig(Section):
    """How an image becomes a square of pixels: MAE's random resized crop and flip."""

    crop_scale: tuple[float, float] = (0.2, 1.0)  # share of the area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    flip: Ratio = 0.5
    mean: Channels = (0.5762, 0.5503, 0.5213)  # per channel of pixels in 0..1; the defaults are CC12M's
    std: Channels = (0.3207, 0.3169, 0.3307)


class DataConfig(Section):
    """Where samples come from, and how they are read."""

    sources: Annotated[list[SourceConfig], Field(min_length=1)]
    validation: list[SourceConfig] = []
    tokenizer: str  # a WordPiece vocab.txt
    augment: AugmentConfig = AugmentConfig()
    workers: Annotated[int, Field(ge=0)] = 2  # loader processes per rank
    prefetch: Positive = 4  # micro-batches ready per worker
    # Readers interleaved in the one order, of which they are part: a multiple of the data-parallel size lets each rank
    # read shards of its own. More lanes: more shards open at a time.
    lanes: Positive = 24
    shuffle_block: Positive = 2048  # samples shuffled together: neighbours in a shard, so reads stay sequential
    cache: str | None = None  # folder for shards fetched from a URL
    cache_bytes: Positive = 100 * 2**30
    retries: Annotated[int, Field(ge=0)] = 5  # of a remote read, with back-off
    bad_sample_limit: Ratio = 0.01  # share of a source that may be unusable before the run stops

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sources: the name {twice[0]!r} stands twice; a name tells a source apart")
        return self


class BatchConfig(Section):
    """The batch triple. Gradient accumulation is what remains: global = micro x data_parallel x accumulation."""

    global_: Positive = Field(alias="global")  # samples per optimizer step
    micro: Positive | None = None  # samples per rank and forward pass; None: the DeepSpeed JSON's
    # tokens per rank and forward pass: an alternative to `micro` for samples of very different length
    micro_tokens: Positive | None = None


class OptimizerConfig(Section):
    """AdamW with the reference's settings."""

    lr: Annotated[float, Field(gt=0)] = 1.5e-4  # peak rate per 256 samples: the rate used is lr x global batch / 256
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    gradient_clipping: Annotated[float, Field(ge=0)] | None = None  # global norm; None: the DeepSpeed JSON's or off


class TrainConfig(Section):
    """How long, and with which learning-rate schedule."""

    length: Span
    warmup: Span = Span(count=0, unit="steps")
    final_lr: Annotated[float, Field(ge=0)] = 0.0  # end of the cosine, in the units of optimizer.lr
    # weights to begin with: a run folder, a checkpoint, an exported file, a model.pkl of m3ae_public, a .pth of MAE
    init_from: str | None = None


class ParallelConfig(Section):
    """How the model is split; data parallelism takes the ranks that remain."""

    tensor: Positive = 1
    # Each tensor-parallel rank holds a part of the tokens between the matrix products: less memory, the same results
    sequence: bool = False


class EngineConfig(Section):
    """What DeepSpeed is told."""

    deepspeed: str  # a JSON of configs/ds/, or your own
    overrides: dict[str, Any] = {}  # keys that replace the JSON's, dotted: {"zero_optimization.overlap_comm": false}
    precision: Literal["fp32", "bf16"] | None = None  # None: the DeepSpeed JSON's
    # none; full: every block; every_n: one block in n; selective: keep matmul outputs, recompute the rest
    recompute: Annotated[str, Field(pattern=r"^(none|full|selective|every_[1-9][0-9]*)$")] = "none"


class KernelConfig(Section):
    """Which backend runs each operation; auto picks by hardware, and the run prints its choice."""

    attention: str = "auto"
    layer_norm: str = "auto"
    linear: str = "auto"  # fp8: the blocks' matrix products in 8 bits, which changes the numbers
    adam: str = "auto"
    text_loss: str = "auto"
    # blocks: torch.compile of the transformer blocks, shapes left open so that batches of other sizes do not recompile
    compile: Literal["none", "blocks"] = "none"


class TrackingConfig(Section):
    """Where MLflow records the run."""

    uri: str | None = None  # None: a SQLite store beside the run folders
    experiment: str = "m3ae_scale"


class GuardConfig(Section):
    """What becomes of a step that would harm the run, and of one that does not end."""

    # skip: pass over the step's samples; rollback: go back to the last checkpoint, and pass over them from there
    policy: Literal["skip", "rollback", "stop"] = "skip"
    spread: Annotated[float, Field(ge=0)] = 10.0  # so many spreads above the median a loss is a spike; 0: no loss is
    window: Positive = 100  # steps that median and spread are taken of
    margin: Annotated[int, Field(ge=0)] = 0  # steps on each side of the bad one that a rollback passes over too
    limit: Positive = 5  # steps not applied within `window`; at one more the run stops
    hang_after: Annotated[float, Field(gt=0)] = 900.0  # seconds without progress after which a rank counts as hung


class RunConfig(Section):
    """Where the run lives, and how often it looks at itself. Intervals are in optimizer steps; 0: never."""

    folder: str = "runs"
    log_every: Positive = 10
    validate_every: Annotated[int, Field(ge=0)] = 500
    validation_batches: Positive = 8  # global batches of each validation
    pictures_every: Annotated[int, Field(ge=0)] = 1000
    checkpoint_every: Annotated[int, Field(ge=0)] = 1000
    save_in_background: bool = False  # train on while it is written, for 12 bytes of host memory a parameter
    keep_checkpoints: Positive = 3  # the newest so many, and always the one with the lowest validation loss
    keep_every: Annotated[int, Field(ge=0)] = 0  # and the checkpoint of every so many steps, for good


class Experiment(Section):
    """One training run, complete."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    seed: int = 42
    model: ModelConfig
    mask: MaskConfig = MaskConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig
    batch: BatchConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig
    parallel: ParallelConfig = ParallelConfig()
    engine: EngineConfig
    kernels: KernelConfig = KernelConfig()
    tracking: TrackingConfig = TrackingConfig()
    guard: GuardConfig = GuardConfig()
    run: RunConfig = RunConfig()

    @field_validator("parallel")
    @classmethod
    def _heads_divide(cls, parallel: ParallelConfig, info: Any) -> ParallelConfig:
        model = info.data.get("model")
        for tower in ("encoder", "decoder") if model else ():
            heads = getattr(model, tower).heads
            if heads % parallel.tensor:
                raise ValueError(
                    f"tensor: {parallel.tensor} does not divide model.{tower}.heads ({heads}); "
                    f"choose a divisor of {heads}"
                )
        if parallel.sequence and parallel.tensor == 1:
            raise ValueError("sequence: true, but tensor is 1; tokens are split over tensor-parallel ranks: set tensor")
        return parallel
