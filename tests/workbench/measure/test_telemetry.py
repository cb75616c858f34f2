"""Telemetry against a scripted NVML: units, counters that are missing or start again, windows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from workbench.measure import telemetry as module
from workbench.measure.environment import gpu_names
from workbench.measure.telemetry import HOST, Nvml, Telemetry, summarise


class Scripted:
    """pynvml with the answers of a script; what is set to an exception raises it."""

    def __init__(self, gpus: int = 1, **answers: Any) -> None:
        self.gpus = gpus
        self.answers: dict[str, Any] = {
            "UtilizationRates": SimpleNamespace(gpu=75, memory=40),
            "MemoryInfo": SimpleNamespace(used=3 * 2**30, total=80 * 2**30),
            "PowerUsage": 350_000,
            "TotalEnergyConsumption": 9_000_000,
            "Temperature": 61,
            "CurrentClocksEventReasons": 0x01,
            **answers,
        }
        self.open = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "MIG-1":
            raise ValueError("Not Found")
        return uuid

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{'abcd'[handle]}000"

    def nvmlDeviceGetName(self, handle: int | str) -> str:
        return f"card {handle}"

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        return {1: 1980, 2: 2619}[kind]

    def __getattr__(self, name: str) -> Any:
        asked = name.removeprefix("nvmlDeviceGet")
        if asked not in self.answers:
            raise AttributeError(name)

        def answer(handle: int, *_kind: int) -> Any:
            said = self.answers[asked]
            if isinstance(said, Iterator):
                said = next(said)
            if isinstance(said, Exception):
                raise said
            return said

        return answer


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def sampled(
    library: Scripted, monkeypatch: pytest.MonkeyPatch, at_s: Sequence[float]
) -> pd.DataFrame:
    """A frame of samples at these times, on a clock that stands still in between; origin 100 s."""
    found = Telemetry(nvml=Nvml(library))
    for now_s in at_s:
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda now_s=now_s: now_s))
        found.sample()
    return found.frame(100.0)


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    columns = ("gpu_utilisation", "memory_used_bytes", "power_w", "energy_j", "sm_clock_mhz")
    more = ("temperature_c", "cpu_utilisation")
    blank = {**dict.fromkeys((*columns, *more), float("nan")), "throttle": None}
    return pd.DataFrame([{**blank, **row} for row in rows])


def test_counters_come_in_the_units_of_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    row = sampled(Scripted(), monkeypatch, [103.5]).iloc[0]
    assert row["t_s"] == 3.5
    assert row["gpu"] == 0
    assert row["gpu_utilisation"] == 0.75
    assert row["memory_utilisation"] == 0.4
    assert row["memory_used_bytes"] == 3 * 2**30
    assert row["memory_total_bytes"] == 80 * 2**30
    assert row["power_w"] == 350
    assert row["energy_j"] == 0, "counted from the first sample, not from the driver's start"
    assert row["sm_clock_mhz"] == 1980
    assert row["memory_clock_mhz"] == 2619
    assert row["temperature_c"] == 61
    assert row["throttle"] == "", "idle slows nothing down"


def test_energy_counts_on_where_the_counter_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    millijoules = iter([100_000, 150_000, ValueError("once"), 10_000, 30_000])
    library = Scripted(TotalEnergyConsumption=millijoules)
    table = sampled(library, monkeypatch, [100, 101, 102, 103, 104])
    energy_j = table.loc[table["gpu"] == 0, "energy_j"].tolist()
    assert energy_j[:2] == [0, 50]
    assert isnan(energy_j[2])
    assert energy_j[3:] == [60, 80]


def test_energy_of_each_gpu_counts_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    millijoules = iter([5_000, 90_000, 6_000, 99_000])
    table = sampled(Scripted(2, TotalEnergyConsumption=millijoules), monkeypatch, [100, 101])
    assert table.loc[table["gpu"] == 0, "energy_j"].tolist() == [0, 1]
    assert table.loc[table["gpu"] == 1, "energy_j"].tolist() == [0, 9]


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        (0x0, ""),
        (0x1 | 0x2 | 0x10 | 0x100, ""),
        (0x4, "sw_power_cap"),
        (0x8 | 0x40, "hw_slowdown,hw_thermal_slowdown"),
        (0x1 | 0x20 | 0x80, "sw_thermal_slowdown,hw_power_brake_slowdown"),
    ],
)
def test_only_what_slows_the_device_down_is_named(bits: int, names: str) -> None:
    assert Nvml(Scripted(CurrentClocksEventReasons=bits)).read(0)["throttle"] == names


def test_reasons_are_those_of_pynvml() -> None:
    pynvml = pytest.importorskip("pynvml")
    assert {
        pynvml.nvmlClocksEventReasonSwPowerCap: "sw_power_cap",
        pynvml.nvmlClocksEventReasonHwSlowdown: "hw_slowdown",
        pynvml.nvmlClocksEventReasonSwThermalSlowdown: "sw_thermal_slowdown",
        pynvml.nvmlClocksEventReasonHwThermalSlowdown: "hw_thermal_slowdown",
        pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "hw_power_brake_slowdown",
    } == module._REASONS
    assert (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM, pynvml.NVML_TEMPERATURE_GPU) == (1, 2, 0)


def test_an_old_driver_knows_the_reasons_by_their_old_name() -> None:
    library = Scripted(CurrentClocksThrottleReasons=0x40)
    library.answers["CurrentClocksEventReasons"] = ValueError("Function Not Found")
    assert Nvml(library).read(0)["throttle"] == "hw_thermal_slowdown"


def test_a_counter_that_is_missing_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Scripted()
    library.answers = dict.fromkeys(library.answers, ValueError("Not Supported"))
    row = sampled(library, monkeypatch, [100]).iloc[0]
    assert row[["gpu_utilisation", "memory_used_bytes", "power_w", "energy_j"]].isna().all()
    assert row["sm_clock_mhz"] == 1980
    assert row["throttle"] is None, "unknown is not the same as nothing"


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["card 0", "card 1", "card 2"]),
        ("", []),
        ("-1", []),
        ("2,0", ["card 2", "card 0"]),
        ("0,7,1", ["card 0"]),
        ("GPU-b000", ["card 1"]),
        ("GPU-c, 0", ["card 2", "card 0"]),
        ("GPU-", []),
        ("MIG-1", ["card MIG-1"]),
        ("MIG-2", []),
    ],
)
def test_only_visible_gpus_are_sampled(
    visible: str | None, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert list(Telemetry(nvml=Nvml(Scripted(3))).gpus) == names


def test_without_nvml_there_is_the_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Scripted()
    monkeypatch.setattr(library, "nvmlInit", lambda: 1 / 0)
    with Telemetry(nvml=Nvml(library)) as found:
        sum(range(200_000))
    table = found.frame(0.0)
    assert found.gpus == ()
    assert table["gpu"].tolist() == [HOST, HOST]
    assert table["power_w"].isna().all()
    assert (table["host_memory_used_bytes"] > 0).all()
    assert table["cpu_utilisation"].dropna().between(0, 1).all()
    summary = summarise(table, (table["t_s"].min(), table["t_s"].max()))
    assert isnan(summary["energy_j"])
    assert isnan(summary["throttled_share"])


def test_gpu_names_are_those_of_the_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Scripted(2)
    monkeypatch.setattr(module, "import_module", lambda _name: library)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpu_names() == ["card 1"]
    assert library.open == 0


def test_a_thread_samples_until_the_end_and_nvml_is_closed() -> None:
    library = Scripted(2)
    with Telemetry(interval_s=0.005, nvml=Nvml(library)) as found:
        deadline_s = time.monotonic() + 10
        while len(found.frame(0.0)) < 5 * 3 and time.monotonic() < deadline_s:
            time.sleep(0.005)
        left_s = time.monotonic()
    table = found.frame(0.0)
    assert len(table) >= 5 * 3
    assert table["gpu"].value_counts().nunique() == 1, (
        "one row per sample and GPU, one for the host"
    )
    assert table.groupby("gpu")["t_s"].apply(lambda t: t.is_monotonic_increasing).all()
    assert (table.groupby("gpu")["t_s"].last() >= left_s).all(), "the end is covered"
    assert library.open == 0
    time.sleep(0.03)
    assert len(found.frame(0.0)) == len(table)


def test_energy_of_a_window_by_interpolation() -> None:
    # 100 W, and from second 2 on 300 W: from 1.5 to 2.5 it is 50 J and 150 J.
    energies = {0: 0, 1: 100, 2: 200, 3: 500}
    table = frame(*({"t_s": t, "gpu": 0, "energy_j": e, "power_w": 7} for t, e in energies.items()))
    assert summarise(table, (1.5, 2.5))["energy_j"] == pytest.approx(200)


@pytest.mark.parametrize("window_s", [(1.0, 5.0), (-2.0, 2.0)])
def test_energy_is_power_times_time_where_the_counter_does_not_span_the_window(
    window_s: tuple[float, float],
) -> None:
    rows = [{"t_s": t, "gpu": 0, "energy_j": 1.0 * t, "power_w": 250} for t in (0, 1, 2, 3)]
    assert summarise(frame(*rows), window_s)["energy_j"] == 1000


def test_energy_is_power_times_time_where_there_is_no_counter() -> None:
    rows = [{"t_s": t, "gpu": 0, "power_w": p} for t, p in ((0, 100), (1, 200), (2, 300), (9, 9))]
    summary = summarise(frame(*rows), (0.0, 2.5))
    assert summary["power_mean_w"] == 200
    assert summary["energy_j"] == 500


def test_sums_means_and_extremes_over_gpus() -> None:
    def gpu(t_s: float, index: int, **counters: Any) -> dict[str, Any]:
        return {"t_s": t_s, "gpu": index, **counters}

    table = frame(
        gpu(0, 0, gpu_utilisation=1.0, memory_used_bytes=50, power_w=300, temperature_c=60),
        gpu(0, 1, gpu_utilisation=0.5, memory_used_bytes=20, power_w=100, temperature_c=70),
        gpu(1, 0, gpu_utilisation=0.0, memory_used_bytes=10, power_w=500, temperature_c=62),
        gpu(1, 1, gpu_utilisation=0.5, memory_used_bytes=30, power_w=300, temperature_c=64),
        gpu(0, HOST, cpu_utilisation=0.2),
        gpu(1, HOST, cpu_utilisation=0.6),
        gpu(2, 0, gpu_utilisation=1.0, memory_used_bytes=99, power_w=999, temperature_c=99),
    )
    summary = summarise(table, (0.0, 1.0))
    assert summary["gpu_utilisation_mean"] == 0.5
    assert summary["memory_used_peak_bytes"] == 80
    assert summary["power_mean_w"] == 600
    assert summary["energy_j"] == 600
    assert summary["temperature_max_c"] == 70
    assert summary["cpu_utilisation_mean"] == pytest.approx(0.4)


def test_heat_and_the_power_limit_are_told_apart() -> None:
    said = ["", "sw_power_cap", "sw_power_cap,hw_thermal_slowdown", "hw_slowdown", None]
    table = frame(*({"t_s": t, "gpu": 0, "throttle": names} for t, names in enumerate(said)))
    summary = summarise(table, (0, 9))
    assert summary["throttled_share"] == 0.5, "of the four samples that know"
    assert summary["power_capped_share"] == 0.5


def test_what_was_not_sampled_in_the_window_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    millijoules = iter([0, 500_000])
    table = sampled(Scripted(TotalEnergyConsumption=millijoules), monkeypatch, [100, 101])
    summary = summarise(table, (0.2, 0.3))
    assert summary.pop("energy_j") == pytest.approx(50), (
        "the counter knows what happened in between"
    )
    assert all(isnan(value) for value in summary.values())


@pytest.mark.parametrize("gpus", [0, 2])
def test_a_frame_says_the_same_once_it_was_written(
    gpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Scripted(gpus, CurrentClocksEventReasons=0x40)
    table = sampled(library, monkeypatch, [100, 101, 102])
    table.to_parquet(tmp_path / "telemetry.parquet", index=False)
    read = summarise(pd.read_parquet(tmp_path / "telemetry.parquet"), (0, 2))
    assert read == pytest.approx(summarise(table, (0, 2)), nan_ok=True)
    assert isnan(read["throttled_share"]) if gpus == 0 else read["throttled_share"] == 1
