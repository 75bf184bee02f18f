"""How much softmax mass a completion left out: a certificate for exact top-k, an estimate for anything else.

Certificate, with u_i = (s_i − s_1)/τ and the k best of M rows kept (design: docs/completion.md):

    r = (M − k) exp(u_{k+1}),   Z_k = Σ_{i≤k} exp(u_i),   mass left out <= m = r / (Z_k + r)

Every row left out scores at most s_{k+1}, so r bounds their sum (s_k where no more than k are known). The full mean is
x = (1 − m) x^ + m y, y a mean of unit rows: ‖x − x^‖ <= 2m, and after L2 normalisation 4m/‖x^‖. Scores are float32;
:func:`score_slack` is how far any order of summation can put them off, and goes into r.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
_UNIT_ROUNDOFF = 2.0**-24
_NORM = 1 + 1e-5  # length of a row that was normalised in float32, at most
_STORED = 2.0**-22  # what the float32 vector and its float64 length can be off by
_Z95 = 1.959963984540054


def score_slack(dim: int) -> float:
    """How far the float32 inner product of two unit rows may be off: γ_D ‖q‖‖x‖ (Higham 2002, equation 3.5)."""
    gamma = dim * _UNIT_ROUNDOFF / (1 - dim * _UNIT_ROUNDOFF)
    return gamma * _NORM**2


def mass_bound(total: Float64 | float, worst: Float64 | float, left: npt.ArrayLike) -> Float64:
    """m = r / (Z + r), r = left · exp(worst): an upper bound of the mass left out.

    Parameters
    ----------
    total : array or float
        Z_k = Σ exp(u_i) over the rows kept, of true scores.
    worst : array or float
        No row left out has u above this; the slack of the scores is already in it.
    left : array or int
        Rows left out, M − k.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rest = np.asarray(left, np.float64) * np.exp(worst)
        bound = np.where(np.isinf(rest), 1.0, rest / (total + rest))
    return np.asarray(np.minimum(1.0, bound * (1 + 1e-9)), np.float64)  # float64 rounding, upwards


def vector_bound(mass: Float64 | float, length: Float64 | float) -> Float64:
    """4m/‖x^‖, at most 2: how far the unit vector of the truncated mean is from that of the full one."""
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = 4 * np.asarray(mass, np.float64) / length
    return np.asarray(np.minimum(2.0, np.nan_to_num(bound, nan=2.0) + _STORED), np.float64)


def rounded_up(value: float, digits: int = 4) -> float:
    """A number to so many significant digits, never below it: a bound stays a bound."""
    if value <= 0:
        return 0.0
    step = 10.0 ** (np.floor(np.log10(value)) - digits + 1)
    near = float(f"{value:.{digits - 1}e}")
    return near if near >= value else float(f"{value + step:.{digits - 1}e}")


def smallest_k(scaled: Float64, below: float, cosines: Float64, rows: int, slack: float, tolerance: float) -> int:
    """The least k whose certificate keeps the unit vector within ``tolerance``; 0 where none does.

    Parameters
    ----------
    scaled : array (K,) float64
        s_i/τ of the best rows, descending.
    below : float
        Every other row has s/τ below this.
    cosines : array (K,) float64
        s_i: their weighted mean is a lower bound of ‖x^‖, since t·x^ = Σ p_i s_i and ‖t‖ = 1.
    rows : int
        M.
    slack : float
        Of s/τ.
    tolerance : float
    """
    weights = np.exp(scaled - scaled[0])
    total = np.cumsum(weights)  # Z_k (K,)
    length = np.cumsum(weights * cosines) / total - 4 * slack * np.abs(cosines).max(initial=0)
    kept = np.arange(1, len(scaled) + 1)
    best_left = np.append(scaled[1:], below)  # s_{k+1}/τ (K,)
    mass = mass_bound(total * np.exp(-slack), best_left - scaled[0] + slack, rows - kept)
    holds = (length > 0) & (vector_bound(mass, np.maximum(length, 1e-30)) <= tolerance)
    return int(holds.argmax()) + 1 if holds.any() else 0


@dataclass(frozen=True)
class MassEstimate:
    """Mass that a set of candidates left out, estimated from a uniform sample of the rest; no bound.

    Parameters
    ----------
    estimate, low, high : array (B,) float64
        Shares of the whole mass: the point estimate and a 95% interval of the normal approximation.
    """

    estimate: Float64
    low: Float64
    high: Float64


def estimate_mass(total: Float64, sums: Float64, squares: Float64, drawn: Float64, left: Float64) -> MassEstimate:
    """Estimate the mass left out.

    Parameters
    ----------
    total : array (B,)
        Σ exp(u) over the candidates of each query.
    sums, squares, drawn : array (B,)
        Σ exp(u), Σ exp(u)² and the number of sampled rows that are not candidates of the query.
    left : array (B,)
        Rows of the bank that are not candidates of the query; the drawn ones are a uniform sample of them.
    """
    n = np.maximum(drawn, 1)
    mean = sums / n
    spread = np.maximum(0.0, squares / n - mean**2) * n / np.maximum(1, n - 1)
    finite = np.clip(1 - n / np.maximum(left, 1), 0.0, 1.0)  # all drawn: nothing is left to chance
    error = left * np.sqrt(spread * finite / n)
    rest = left * mean
    unknown = (drawn == 0) & (left > 0)

    def share(part: Float64) -> Float64:
        return np.asarray(part / (total + part), np.float64)

    high = np.where(unknown, 1.0, share(rest + _Z95 * error))
    return MassEstimate(share(rest), share(np.maximum(0.0, rest - _Z95 * error)), high)
