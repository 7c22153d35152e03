"""Made-up prompts of which it is known where they are refused."""

import numpy as np
from scipy.special import expit

MEANS = {"harmful": 1.0, "harmless": -1.0, "pseudo_harmful": 0.1}
Prompts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def prompts(n: int, b: float, k: float, seed: int, shares: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)) -> Prompts:
    """Margins, refusals with the half point b, labels and families of two."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(list(MEANS), n, p=shares)
    margins = np.array([MEANS[label] for label in labels]) + 0.6 * rng.normal(size=n)
    return margins, rng.random(n) < expit(k * (margins - b)), labels, np.arange(n) // 2


def by_hand(rows: list[tuple[float, bool, str]]) -> Prompts:
    margins, refused, labels = (np.array(column) for column in zip(*rows, strict=True))
    return margins, refused, labels, np.arange(len(rows))
