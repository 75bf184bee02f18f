"""Counter-based noise: the perturbation of a row is a function of (seed, step, row, stream, dimension) alone.

Neither the batch that a row is in, nor the rank that holds it, nor the number of batches drawn before it changes its
noise, so a resumed fit and a fit on more processes see the same perturbations.
"""

from __future__ import annotations

import math

import torch

# Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 4.3.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = 0xFFFFFFFF
_CHUNK = 1 << 17  # counters worked on at a time: temporaries of 2 MB, and operations long enough for all threads
_DEVICE_CHUNK = 1 << 22  # on an accelerator, where launching is what costs


def philox4x32(counter: tuple[torch.Tensor, ...], key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Philox4x32-10 on tensors.

    Parameters
    ----------
    counter : four int64 tensors of one shape
        The words of the counter, each in [0, 2³²).
    key : (int, int)
        The words of the key.

    Returns
    -------
    four int64 tensors of that shape
        Uniform 32-bit words in [0, 2³²).
    """
    even, odd = _philox(torch.stack(counter[::2]), torch.stack(counter[1::2]), key)
    return even[0], odd[0], even[1], odd[1]


def _philox(even: torch.Tensor, odd: torch.Tensor, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same on words 0 and 2 and words 1 and 3, (2, ...) each, which are overwritten: half as many operations."""
    product = torch.empty_like(even)
    for number in range(_ROUNDS):
        keys = [(word + number * weyl) & _MASK for word, weyl in zip(key, _WEYL, strict=True)]
        # The product of two 32-bit words wraps in int64; its bits are right, and the mask undoes the sign of the shift.
        torch.mul(even[1], _MULTIPLIERS[1], out=product[0])
        torch.mul(even[0], _MULTIPLIERS[0], out=product[1])
        torch.bitwise_right_shift(product, 32, out=even).bitwise_xor_(odd)
        even.bitwise_xor_(even.new_tensor(keys).view(2, *[1] * (even.ndim - 1))).bitwise_and_(_MASK)
        odd, product = product, odd  # the high bits of odd are masked with what is made of them
    return even, odd.bitwise_and_(_MASK)


def normal_rows(rows: torch.Tensor, dim: int, *, seed: int, step: int, stream: int = 0) -> torch.Tensor:
    """Standard normal noise of some rows.

    Parameters
    ----------
    rows : int64 tensor (B,)
        Global numbers of the rows, below 2⁵⁶.
    dim : int
        Width of a row.
    seed, step, stream : int
        Seed of the fit (below 2⁶⁴), number of the step (below 2³²), which of the perturbed inputs (below 256).

    Returns
    -------
    float32 tensor (B, dim)
        On the device of ``rows``; a row depends on its own number only.
    """
    words = -(-dim // 4)  # one counter gives four normals
    noise = torch.empty((len(rows), words, 4), dtype=torch.float32, device=rows.device)
    key = (seed & _MASK, (seed >> 32) & _MASK)
    word = torch.arange(words, dtype=torch.int64, device=rows.device)
    per_chunk = max(1, (_CHUNK if rows.device.type == "cpu" else _DEVICE_CHUNK) // words)
    for start in range(0, len(rows), per_chunk):
        part = rows[start : start + per_chunk, None]
        even, odd = torch.empty((2, 2, len(part), words), dtype=torch.int64, device=rows.device)
        even[0], even[1] = word, step & _MASK
        odd[0], odd[1] = part & _MASK, (part >> 32 << 8) + stream
        _box_muller(*_philox(even, odd, key), noise[start : start + per_chunk])
    flat = noise.view(len(rows), 4 * words)  # (B, 4 words)
    return flat if dim == 4 * words else flat[:, :dim].contiguous()


def _box_muller(u: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
    """√(−2 ln u) cos 2πv and √(−2 ln u) sin 2πv of uniforms (2, b, w) (Box and Muller 1958), into out (b, w, 4)."""
    pairs = out.view(*out.shape[:2], 2, 2).movedim(2, 0)  # (2, b, w, 2)
    # u in (0, 1]: half a unit above the lattice, so that the logarithm is finite
    radius = u.to(torch.float32).add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).clamp_min_(0.0).sqrt_()
    angle = v.to(torch.float32).mul_(2.0 * math.pi * 2.0**-32)
    torch.mul(radius, angle.cos(), out=pairs[..., 0])
    torch.mul(radius, angle.sin_(), out=pairs[..., 1])


def perturb(
    rows: torch.Tensor, vectors: torch.Tensor, std: float, *, seed: int, step: int, stream: int
) -> torch.Tensor:
    """Perturbed unit rows z~ = normalize(z + ε), ε ~ N(0, σ² I) (arXiv 2305.14381: semantic completion).

    Parameters
    ----------
    rows : int64 tensor (B,)
        Global numbers of the rows.
    vectors : tensor (B, D)
        The rows z; not changed.
    std : float
        σ; at 0 the rows are only normalised.
    """
    if std > 0:
        noise = normal_rows(rows, vectors.shape[1], seed=seed, step=step, stream=stream)
        vectors = noise.to(vectors.dtype).mul_(std).add_(vectors)  # z + ε
    return torch.nn.functional.normalize(vectors, dim=1)
