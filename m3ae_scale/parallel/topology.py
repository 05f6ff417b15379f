"""Where a rank stands, and how a global batch is cut up: tensor x data x accumulation. Arithmetic only, no torch."""

from dataclasses import dataclass

from m3ae_scale.errors import InputError


@dataclass(frozen=True)
class Topology:
    """`world` ranks in groups of `tensor` neighbours, as in Megatron: rank = data_rank * tensor + tensor_rank."""

    world: int
    tensor: int = 1

    def __post_init__(self) -> None:
        if self.world < 1 or self.tensor < 1:
            raise InputError(f"topology: found {self.world} ranks and parallel.tensor {self.tensor}; both start at 1")
        if self.world % self.tensor:
            raise InputError(
                f"parallel.tensor {self.tensor} does not divide the {self.world} ranks; "
                f"start {_either(_multiples_around(self.world, self.tensor))} ranks, or set parallel.tensor to "
                f"{_either(_divisors_around(self.world, self.tensor))}"
            )

    @property
    def data(self) -> int:
        """Data-parallel size: how many tensor groups there are."""
        return self.world // self.tensor

    def tensor_rank(self, rank: int) -> int:
        """Place of `rank` within its tensor group."""
        return rank % self.tensor

    def data_rank(self, rank: int) -> int:
        """Which tensor group `rank` belongs to: its share of the data."""
        return rank // self.tensor

    def tensor_group(self, data_rank: int) -> tuple[int, ...]:
        """Return the ranks that hold one copy of the model between them."""
        return tuple(range(data_rank * self.tensor, (data_rank + 1) * self.tensor))

    def data_group(self, tensor_rank: int) -> tuple[int, ...]:
        """Return the ranks that hold the same shard of the model, one per data-parallel share."""
        return tuple(range(tensor_rank, self.world, self.tensor))


@dataclass(frozen=True)
class BatchPlan:
    """How one optimizer step consumes its samples: global_batch = micro_batch x accumulation x data."""

    global_batch: int  # samples per optimizer step, over all ranks
    micro_batch: int  # samples per rank and forward pass; with a token budget: on average
    accumulation: int  # forward passes per optimizer step
    data: int  # data-parallel size
    micro_tokens: int | None = None  # token budget per rank and forward pass, where that replaces the sample count

    @property
    def rank_batch(self) -> int:
        """Samples per rank and optimizer step."""
        return self.global_batch // self.data


def plan_batch(
    global_batch: int,
    data: int,
    micro_batch: int | None = None,
    accumulation: int | None = None,
    micro_tokens: int | None = None,
    tokens_per_sample: float | None = None,
) -> BatchPlan:
    """Cut `global_batch` samples into micro-batches for `data` data-parallel shares.

    Given is the micro-batch, the accumulation, both, or a token budget `micro_tokens` with the average
    `tokens_per_sample`; with none of them, each share takes its samples in one forward pass.
    Raises InputError, with the nearest numbers that work, where they do not divide.
    """
    if global_batch % data:
        raise InputError(
            f"batch.global {global_batch} does not divide by data parallel {data}; "
            f"use {_either(_multiples_around(global_batch, data))}"
        )
    share = global_batch // data
    if micro_tokens is not None:
        return _plan_tokens(global_batch, data, micro_batch, micro_tokens, tokens_per_sample)
    if micro_batch is None:
        return _plan_from_accumulation(global_batch, data, accumulation or 1)
    pass_ = micro_batch * data
    if global_batch % pass_:
        raise InputError(
            f"batch.global {global_batch} does not divide by micro {micro_batch} x data parallel {data} = {pass_}; "
            f"use {_either(_multiples_around(global_batch, pass_))}, or batch.micro "
            f"{_either(_divisors_around(share, micro_batch))}"
        )
    if accumulation is not None and accumulation * pass_ != global_batch:
        raise InputError(
            f"micro {micro_batch} x accumulation {accumulation} x data parallel {data} = {pass_ * accumulation}, "
            f"but batch.global is {global_batch}; leave the accumulation out, or set it to {global_batch // pass_}"
        )
    return BatchPlan(global_batch, micro_batch, global_batch // pass_, data)


def _plan_from_accumulation(global_batch: int, data: int, accumulation: int) -> BatchPlan:
    share = global_batch // data
    if share % accumulation:
        raise InputError(
            f"batch.global {global_batch} / data parallel {data} = {share} samples do not divide by gradient "
            f"accumulation {accumulation}; use {_either(_divisors_around(share, accumulation))}"
        )
    return BatchPlan(global_batch, share // accumulation, accumulation, data)


def _plan_tokens(
    global_batch: int, data: int, micro_batch: int | None, micro_tokens: int, tokens_per_sample: float | None
) -> BatchPlan:
    """Choose the fewest forward passes whose average length stays within the budget.

    The passes divide the share evenly, since DeepSpeed insists on global = micro x accumulation x data; how many
    samples a single pass takes is the packer's to decide.
    """
    if micro_batch is not None:
        raise InputError("batch.micro and batch.micro_tokens are both set; keep one: a count of samples or of tokens")
    if tokens_per_sample is None or tokens_per_sample <= 0:
        raise InputError("batch.micro_tokens needs the average tokens per sample; set batch.micro instead")
    if micro_tokens < tokens_per_sample:
        raise InputError(
            f"batch.micro_tokens {micro_tokens} is less than one sample ({tokens_per_sample:g} tokens on average); "
            f"use at least {int(-(-tokens_per_sample // 1))}"
        )
    share = global_batch // data
    fitting = (a for a in range(1, share + 1) if share % a == 0 and share // a * tokens_per_sample <= micro_tokens)
    accumulation = next(fitting)  # one sample a pass always fits, see above
    return BatchPlan(global_batch, share // accumulation, accumulation, data, micro_tokens)


def _multiples_around(value: int, unit: int) -> list[int]:
    below = value // unit * unit
    return [n for n in (below, below + unit) if n > 0]


def _divisors_around(total: int, wanted: int) -> list[int]:
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    below, above = [d for d in divisors if d <= wanted], [d for d in divisors if d > wanted]
    return below[-1:] + above[:1]


def _either(numbers: list[int]) -> str:
    return " or ".join(str(n) for n in numbers)
