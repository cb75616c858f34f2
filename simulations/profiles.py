"""Published daily profiles: shape, burstiness and lengths, each with its source.

Hourly means of the published request rate; only the shape is used, `Day.peak_rps` sets the level.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """A day of real traffic. Lengths are medians and means in tokens."""

    source: str
    hourly_shape: tuple[float, ...]
    burstiness: float
    """Squared inverse of the coefficient of variation of the gaps: 1 is Poisson."""
    prompt_median_tokens: float
    prompt_mean_tokens: float
    output_median_tokens: float
    output_mean_tokens: float


PROFILES: dict[str, Profile] = {
    # CV of the gaps 1.1 (median over 10-minute windows); busiest to quietest hour 4.9.
    "servegen-deepseek-r1": Profile(
        source="alibaba/ServeGen @ f891d1189eb3, deepseek-r1, one day (Apache-2.0);"
        " Xiang et al., ServeGen, arXiv 2505.09999",
        hourly_shape=(
            *(19.31, 22.25, 32.58, 28.64, 17.04, 14.54, 12.00, 9.24, 9.54, 10.63, 12.98, 13.29),
            *(7.16, 8.72, 10.96, 11.27, 14.06, 8.86, 12.00, 9.41, 19.86, 25.97, 35.13, 18.91),
        ),
        burstiness=0.83,
        prompt_median_tokens=208,
        prompt_mean_tokens=1266,
        output_median_tokens=788,
        output_mean_tokens=1523,
    ),
    # Tuesday 14 May 2024, UTC; busiest to quietest hour 10.9. Burstiness and lengths are those of
    # the same service's one-hour trace of November 2023 (CV 11 within 10 minutes).
    "azure-code-2024": Profile(
        source="Azure/AzurePublicDataset @ b469a113 (CC-BY-4.0);"
        " Stojkovic et al., DynamoLLM, HPCA 2025; lengths: Patel et al., Splitwise, ISCA 2024",
        hourly_shape=(
            *(27.7, 29.3, 26.0, 18.2, 14.9, 12.1, 9.9, 7.9, 7.6, 9.0, 9.4, 14.0),
            *(26.3, 48.0, 66.6, 66.3, 59.7, 72.9, 82.4, 82.4, 74.7, 53.7, 39.7, 30.3),
        ),
        burstiness=0.0083,
        prompt_median_tokens=1469,
        prompt_mean_tokens=2048,
        output_median_tokens=13,
        output_mean_tokens=28,
    ),
}
