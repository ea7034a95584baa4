"""Time, energy and money of a training, and what this machine can do."""

import pytest

from llmnb import cost
from llmnb.transformer import TransformerConfig


def test_the_machines_memory():
    import psutil

    assert cost.machine_memory()["memory"] == psutil.virtual_memory().total


def test_llama_65bs_training_run():
    # Touvron et al. 2023, section 2.4: "380 tokens/sec/GPU on 2048 A100", 1.4T tokens, 21 days.
    config = TransformerConfig.of(
        "llama",
        vocab_size=32000,
        d_model=8192,
        n_layers=80,
        n_heads=64,
        d_ff=22016,
        n_positions=2048,
    )
    n_parameters, a100 = cost.total_parameters(config), cost.HARDWARE["A100"]
    assert n_parameters // 1e8 == 652  # table 2: 65.2B
    seconds = 1.4e12 / (380 * 2048)
    assert round(seconds / 86400) == 21
    flops = cost.training_flops(n_parameters, 1.4e12)
    share = cost.utilization(flops, seconds, a100, 2048)
    assert share == pytest.approx(0.47, abs=0.01)
    with_attention = 1.4e12 * cost.flops_per_token(config, 2048)
    assert cost.utilization(with_attention, seconds, a100, 2048) == pytest.approx(0.49, abs=0.01)
    assert cost.training_seconds(flops, a100, 2048, share) == pytest.approx(seconds)
    # Table 15: 1,022,362 GPU-hours, 449 MWh with a power usage effectiveness of 1.1.
    assert 1.1 * cost.energy_kwh(1_022_362 * 3600, a100) == pytest.approx(449e3, rel=0.005)
    assert cost.energy_kwh(3600, a100, 10) == pytest.approx(4)


def test_the_peaks_are_without_sparsity():
    # NVIDIA's sheets, with sparsity: A100 624 and H100 SXM 1,979 TFLOPS in bf16. T4: 65 in fp16.
    peaks = {name: each.peak_flops for name, each in cost.HARDWARE.items()}
    assert peaks == pytest.approx({"T4": 65e12, "A100": 624e12 / 2, "H100": 1979e12 / 2}, rel=1e-3)
    assert [each.watts for each in cost.HARDWARE.values()] == [70, 400, 700]


def test_seconds_and_dollars():
    t4 = cost.HARDWARE["T4"]
    assert cost.training_seconds(65e12 * 100, t4) == pytest.approx(250)  # at 40 %
    assert cost.training_seconds(65e12 * 100, t4, 4, 0.5) == pytest.approx(50)
    assert cost.utilization(65e12 * 100, 400, t4, 1) == pytest.approx(0.25)
    assert cost.dollars(24 * 3600, 2.5, 8) == pytest.approx(480)
    assert cost.dollars(1800, 3.0) == pytest.approx(1.5)


def test_this_machine():
    here = cost.this_machine(1e12, watts=45)
    assert (here.peak_flops, here.watts, here.dollars_per_hour) == (1e12, 45, 0)
    assert here.memory_bytes in cost.machine_memory().values()


def test_the_best_product_counts(monkeypatch):
    clock = iter((0, 0, 2, 3, 3.5, 4, 5, 5.5, 6, 6.75, 7))  # 3 products, 1 more, the end
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(clock))
    assert cost.measure_flops("fp32", seconds=6, size=10) == 2000 / 0.5


A100 = cost.HARDWARE["A100"]
WRONG = {
    "seq is 0": lambda: cost.flops_per_token(cost.gpt(64, 1, 2), 0),
    "n_parameters is -1": lambda: cost.training_flops(-1, 10),
    "n_tokens is 0": lambda: cost.training_flops(10, 0),
    "flops is nan": lambda: cost.compute_optimal(float("nan")),
    "tokens_per_parameter is 0": lambda: cost.compute_optimal(1e18, 0),
    "batch_size is 0": lambda: cost.training_memory(cost.gpt(64, 1, 2), 0, 8),
    "seq is -8": lambda: cost.training_memory(cost.gpt(64, 1, 2), 1, -8),
    "optimizer is 'sgd'; choose one of adamw": lambda: cost.training_memory(
        cost.gpt(64, 1, 2), 1, 8, "sgd"
    ),
    "dtype is 'int8'; choose one of fp32": lambda: cost.training_memory(
        cost.gpt(64, 1, 2), 1, 8, dtype="int8"
    ),
    "peak_flops is 0": lambda: cost.training_seconds(1e18, cost.Hardware("none", 0, 10)),
    "peak_flops is -5": lambda: cost.utilization(1e18, 10, cost.Hardware("none", -5, 10)),
    "seconds is 0": lambda: cost.measure_flops("fp32", seconds=0),
    "size is 0": lambda: cost.measure_flops("fp32", size=0),
    "flops is 0": lambda: cost.training_seconds(0, A100),
    "n_devices is 0": lambda: cost.training_seconds(1e18, A100, 0),
    "utilization is 0;": lambda: cost.training_seconds(1e18, A100, utilization=0),
    "utilization is 1.1": lambda: cost.training_seconds(1e18, A100, utilization=1.1),
    "flops is -1": lambda: cost.utilization(-1, 10, A100),
    "seconds is -10": lambda: cost.utilization(1e18, -10, A100),
    "n_devices is -2": lambda: cost.utilization(1e18, 10, A100, -2),
    "seconds is inf": lambda: cost.energy_kwh(float("inf"), A100),
    "watts is 0": lambda: cost.energy_kwh(10, cost.Hardware("unknown", 1e12, 10)),
    "n_devices is -1": lambda: cost.energy_kwh(10, A100, -1),
    "seconds is -1": lambda: cost.dollars(-1, 2),
    "price_per_hour is 0": lambda: cost.dollars(3600, A100.dollars_per_hour),
    "n_devices is -3": lambda: cost.dollars(3600, 2, -3),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_value_is_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()
