"""Made results that follow a known law, so that a page of them can be held to what it must say."""

import math
from typing import Any

from m3ae_scale.reports.scaling_law import Law
from m3ae_scale.sizes import SIZES, model_parameters, tower_parameters

LAW = Law(floor=0.8, size_factor=60.0, size_exponent=0.3, data_factor=90.0, data_exponent=0.4)
Row = dict[str, Any]


def provenance(host: str = "gpu07", gpu: str | None = "NVIDIA H200") -> Row:
    hardware = {"cpu": "AMD EPYC <9654>", "cores": 96, "memory_gib": 1500.0}
    hardware |= {"gpus": [{"name": gpu, "memory_gib": 139.8}]} if gpu else {}
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "host": host,
        "command": "m3ae-scale bench scaling 'a & b.yaml'",
        "hardware": hardware,
        "versions": {"python": "3.12.1", "torch": "2.13.0"},
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "slurm_job": "17",
    }


def scaling_row(size: str, samples: int, devices: int = 1, batch: int = 256, speed: float | None = None) -> Row:
    shape = SIZES[size]
    encoder = tower_parameters(shape.encoder)
    speed = speed or devices * 4e9 / encoder
    loss = float(LAW.loss(encoder, samples)) * (1 + 0.002 * math.sin(samples + encoder))
    return {
        "bench": "scaling",
        "cell": {"sweep": "made", "size": size, "layout": "plain", "samples": samples, "devices": devices,
                 "global_batch": batch, "set": []},
        "status": "ok", "devices": devices, "device": "cuda", "precision": "bf16", "zero_stage": 1,
        "parameters": model_parameters(shape.encoder, shape.decoder), "encoder_parameters": encoder,
        "global_batch": batch, "steps": samples // batch, "samples": samples, "epochs": 0.5,
        "loss": loss * 1.01, "validation_loss": loss, "seconds": samples / speed,
        "samples_per_second": speed, "tokens_per_second": 300 * speed, "step_seconds": batch / speed,
        "model_flops_per_sample": 900.0 * encoder, "model_flops": 900.0 * encoder * samples,
        "peak_memory_bytes": 20.0 * encoder + 2e9,
        "curve": [[samples * i / 20, samples * i / 20 / speed, loss + 3 / i] for i in range(1, 21)],
        "provenance": provenance(),
    }  # fmt: skip


def throughput_row(size: str, stage: int, **changed: Any) -> Row:
    shape = SIZES[size]
    parameters = model_parameters(shape.encoder, shape.decoder)
    row = {
        "bench": "throughput",
        "cell": {"size": size, "micro_batch": 64, "devices": 1, "tensor_parallel": 1, "zero_stage": stage,
                 "precision": "bf16", "recompute": "none"},
        "status": "ok", "device": "NVIDIA H200", "parameters": parameters,
        "samples_per_second": 4e11 / parameters / (1 + 0.1 * stage), "tokens_per_second": 1.2e14 / parameters,
        "step_seconds": 0.1, "step_seconds_p10": 0.09, "step_seconds_p90": 0.12,
        "mfu_ceiling": 0.61 - 0.02 * stage, "mfu_datasheet": 0.45, "hfu_ceiling": 0.62, "watts": 650.0,
        "peak_memory_bytes": 18.0 * parameters, "provenance": provenance(),
    }  # fmt: skip
    return row | changed


def results() -> list[Row]:
    """Rows of every kind that the report shows."""
    rows = [scaling_row(size, samples) for size in ("tiny", "small", "base", "large")
            for samples in (100_000, 400_000, 1_600_000)]  # fmt: skip
    one = rows[3]["samples_per_second"]
    rows += [scaling_row("small", 100_000, n, 256, one * n * 0.9**i) for i, n in enumerate((2, 4), start=1)]
    rows += [scaling_row("small", 100_000 * n, n, 256 * n, one * n * 0.97**i) for i, n in enumerate((2, 4), start=1)]
    rows += [throughput_row(size, stage) for size in ("small", "base", "large", "huge") for stage in (1, 3)]
    failed = throughput_row("10b", 1)
    rows.append({"bench": "throughput", "cell": failed["cell"], "status": "out of memory", "provenance": provenance()})
    rows += [
        {"bench": "peers", "cell": {"task": "pairs", "size": "base", "peer": peer}, "status": "ok",
         "samples_per_second": speed, "step_seconds": 64 / speed, "provenance": provenance()}
        for peer, speed in (("m3ae_scale", 3100.0), ("dense PyTorch", 1900.0))
    ]  # fmt: skip
    return rows
