"""One length of prompt and answer tells nothing apart, and is refused; prompts are found in the log."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from serving.errors import MeasurementError
from simulations.traffic import ClosedLoop, Fixed, Poisson, Workload
from workbench.fit import fit
from workbench.fit.prefills import contexts
from workbench.fit.shapes import label
from workbench.measure import Measurement

from .made import TRUE, latency_model, measurement, poisson


def closed(prompt: int, output: int, batch: int) -> Workload:
    return Workload(
        arrivals=ClosedLoop(concurrency=batch, requests=2 * batch),
        prompt_tokens=Fixed(tokens=prompt),
        output_tokens=Fixed(tokens=output),
    )


def swept(prompt: int, output: int, batch: int, seed: int = 0) -> Measurement:
    """A closed loop as it is: all prompts in one step, then all decode together."""
    later = np.arange(1, output)
    prefill = np.concatenate([[prompt * batch], np.zeros(output - 1)])
    decode = np.concatenate([[0], np.full(output - 1, batch)])
    kv = np.concatenate([[0], batch * (prompt + later - 1)])
    seqs = np.where(prefill > 0, batch, 0)
    attention = prefill * (prompt + 1) / 2
    noise = np.exp(np.random.default_rng(seed).normal(0, 0.01, output))
    took = latency_model().step_time_s(prefill, decode, kv, attention, seqs) * noise
    table = pd.DataFrame(
        {
            "t_s": np.cumsum(took),
            "step_s": took,
            "gap_s": 0.0,
            "prefill_requests": seqs,
            "prefill_tokens": prefill.astype(int),
            "decode_seqs": decode,
            "kv_tokens": (kv + prefill + decode).astype(int),
            "running": batch,
            "waiting": 0,
        }
    )
    name = f"{prompt}x{output}-{batch}"
    return measurement(table, name=name, workload=closed(prompt, output, batch))


def test_one_length_at_many_loads_is_refused() -> None:
    one = [swept(64, 64, batch, batch) for batch in (1, 2, 4, 8, 16, 32)]
    with pytest.raises(MeasurementError, match=r"lengths\(=64/64\) are fewer than 3.*shapes="):
        fit(one)
    forced = fit(one, force=True)
    assert len(forced.doubts) == 1
    assert "64/64" in forced.doubts[0]


def test_lengths_that_grow_together_are_refused() -> None:
    alike = [swept(n, 8, 8, n) for n in (398, 400, 402, 404)]
    with pytest.raises(MeasurementError, match=r"condition number\(=\d+\).*grew together"):
        fit(alike)


def test_a_few_more_lengths_make_it_a_fit() -> None:
    several = [swept(64, 64, batch, batch) for batch in (1, 2, 4, 8, 16, 32)]
    several += [swept(192, 16, 8, 40), swept(16, 128, 8, 41)]
    model = fit(several)
    assert model.doubts == ()
    assert model.shapes[-1] == "16/128 x8"
    for name in ("base_s", "per_kv_token_s"):
        assert getattr(model, name) == pytest.approx(TRUE[name], rel=0.15), name
    both = model.per_seq_s + model.per_token_s
    assert both == pytest.approx(TRUE["per_seq_s"] + TRUE["per_token_s"], rel=0.1)


def test_labels_name_lengths_and_load() -> None:
    assert label(swept(64, 32, 8)) == "64/32 x8"
    requests = pd.DataFrame(
        {"prompt_tokens": [10, 20], "output_tokens": [5, 5], "first_token_s": 1.0}
    )
    load = poisson(4.0).at(arrivals=Poisson(rate_rps=4.0))
    drawn = measurement(swept(64, 32, 8).steps, workload=load, requests=requests)
    assert label(drawn) == "~15/5 @4/s"


# -- which prompt a prefill belongs to -----------------------------------------------------------


def log(*rows: tuple[int, int]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["prefill_requests", "prefill_tokens"])


def asked(*prompts: int) -> pd.DataFrame:
    sent = np.arange(len(prompts), dtype=float)
    return pd.DataFrame({"sent_s": sent, "first_token_s": sent, "prompt_tokens": prompts})


def pairs(*parts: tuple[int, int]) -> float:
    """Tokens x context of (tokens, computed before)."""
    return sum(n * (c + (n + 1) / 2) for n, c in parts)


@pytest.mark.parametrize(
    ("steps", "requests", "attention", "half_done"),
    [
        (log((1, 100), (0, 0), (1, 50)), asked(100, 50), [(100, 0)], [0, 0, 0]),
        # 100 and 28 of 60; its other 32 after them, and 30 of 70; 40 of 70.
        (
            log((2, 128), (2, 62), (0, 0), (1, 40)),
            asked(100, 60, 70),
            [(100, 0), (28, 0)],
            [0, 28, 0, 30],
        ),
        # One prompt over three steps.
        (log((1, 64), (1, 64), (1, 22)), asked(150), [(64, 0)], [0, 64, 128]),
    ],
)
def test_a_prompt_is_followed_over_its_chunks(
    steps: pd.DataFrame, requests: pd.DataFrame, attention: Any, half_done: list[int]
) -> None:
    found, before = contexts(steps, requests)
    assert found[0] == pairs(*attention)
    assert before.tolist() == half_done
    total = sum(n * (n + 1) / 2 for n in requests["prompt_tokens"])
    assert found.sum() == total, "however a prompt is cut, its pairs are the same"


def test_a_log_that_disagrees_is_shared_out_evenly() -> None:
    found, before = contexts(log((2, 100), (1, 100)), asked(100, 100))
    assert found.tolist() == [100 * 51 / 2, 100 * 101 / 2]
    assert before.tolist() == [0, 0]
    unknown, _ = contexts(log((1, 100)), pd.DataFrame())
    assert unknown.tolist() == [100 * 101 / 2]
