"""What is read from a trace, on traces whose answer is known."""

from typing import Any

from m3ae_scale.bench.profile import describe, length, merged


def event(name: str, category: str, start: float, duration: float) -> dict[str, Any]:
    return {"ph": "X", "name": name, "cat": category, "ts": start, "dur": duration}


def test_intervals_that_overlap_count_once() -> None:
    assert merged([(5, 6), (0, 2), (1, 4)]) == [(0, 4), (5, 6)]
    assert length(merged([(5, 6), (0, 2), (1, 4)])) == 5


def test_exposed_communication_is_what_no_kernel_hides() -> None:
    events = [
        event("gemm", "kernel", 0, 1000),
        event("ncclDevKernel_AllReduce", "kernel", 500, 1000),  # half of it under the product
        event("gemm", "kernel", 2000, 1000),  # after 500 in which the device had nothing
        event("encoder.transformer", "gpu_user_annotation", 0, 1000),
        event("encoder.transformer", "user_annotation", 0, 10),  # the host's time of it
        {"ph": "M", "name": "process_name"},
    ]
    rows = dict(line.strip("| ").split(" | ") for line in describe(events, 1, on_gpu=True) if " | " in line)
    assert rows["communication that nothing hid"] == "0.50"
    assert rows["communication"] == "1.00"
    assert rows["device waiting for the host"] == "0.50"
    assert rows["device busy"] == "2.50"
    assert rows["encoder.transformer (forward)"] == "1.00"


def test_on_a_cpu_the_hosts_ranges_count() -> None:
    events = [event("text_head", "user_annotation", 0, 3000), event("c10d::allreduce_", "cpu_op", 0, 1000)]
    rows = dict(line.strip("| ").split(" | ") for line in describe(events, 2, on_gpu=False) if " | " in line)
    assert rows["text_head (forward)"] == "1.50"
    assert rows["communication (on a CPU nothing hides it)"] == "0.50"
