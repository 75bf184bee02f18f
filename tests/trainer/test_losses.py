from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cmcr.trainer import losses
from cmcr.trainer.losses import LossWeights, cmcr_loss, info_nce, intra
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F


def plain_info_nce(a: torch.Tensor, b: torch.Tensor, tau: float) -> torch.Tensor:
    logits, labels = a @ b.T / tau, torch.arange(len(a))
    return 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))


def pair(size: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(2, size, dim, generator=generator, dtype=torch.float64), dim=2).to(dtype)
    return rows[0].requires_grad_(), rows[1].requires_grad_()


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 40),
    dim=st.integers(1, 12),
    chunk=st.none() | st.integers(1, 50),
    tau=st.sampled_from([0.01, 0.05, 1.0]),
    seed=st.integers(0, 99),
)
def test_chunked_info_nce_equals_the_plain_one_in_value_and_gradient(
    size: int, dim: int, chunk: int | None, tau: float, seed: int
) -> None:
    a, b = pair(size, dim, seed)
    ours, plain = info_nce(a, b, tau, chunk=chunk), plain_info_nce(a, b, tau)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)
    got = torch.autograd.grad(2.5 * ours, (a, b))
    expected = torch.autograd.grad(2.5 * plain, (a, b))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("tau", [0.01, 0.002, 1e-4])
@pytest.mark.parametrize("chunk", [None, 7])
def test_logits_too_far_apart_for_one_shift_stay_exact_in_float32(tau: float, chunk: int | None) -> None:
    a, b = pair(31, 3, dtype=torch.float32)
    with torch.no_grad():
        b[:5] = -a[:5]  # pairs at cosine -1: logits from -1/tau to 1/tau
    ours = info_nce(a, b, tau, chunk=chunk)
    wide = [t.detach().double().requires_grad_() for t in (a, b)]
    exact = plain_info_nce(wide[0], wide[1], tau)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6)
    got = torch.autograd.grad(ours, (a, b))
    expected = torch.autograd.grad(exact, wide)
    for ours_grad, exact_grad in zip(got, expected, strict=True):
        torch.testing.assert_close(ours_grad.double(), exact_grad, rtol=1e-3, atol=1e-4 * float(exact_grad.abs().max()))


def test_the_spread_of_a_small_temperature_takes_the_running_maxima() -> None:
    a, b = pair(31, 3, dtype=torch.float32)
    with torch.no_grad():
        b[:] = -a
    sums = losses._exponentials(a.detach()[:1], b.detach()[:1], 1e-4, 31, keep=False)
    assert not sums.trustworthy()
    assert losses._exponentials(*[t.detach() for t in pair(31, 8, dtype=torch.float32)], 0.05, 31, False).trustworthy()


def test_a_large_batch_keeps_no_square_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "KEPT_ELEMENTS", 100)
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 120)
    a, b = pair(37, 5)
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(tuple(t.shape)), t)[1], lambda t: t):
        loss = info_nce(a, b, 0.1)
    assert saved
    assert (37, 37) not in saved
    torch.testing.assert_close(loss, plain_info_nce(a, b, 0.1))


PEAK = """
import sys
import torch
from torch.nn import functional as F
from cmcr.trainer.losses import info_nce
torch.set_num_threads(1)
kind, size = sys.argv[1], int(sys.argv[2])

def contrast(a, b):
    logits, labels = a @ b.T / 0.05, torch.arange(len(a))
    return 0.5 * (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels))

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

rows = F.normalize(torch.randn(2, size, 32), dim=2).requires_grad_()
info_nce(rows[0, :64], rows[1, :64], 0.05, chunk=16).backward()
before = peak()
(contrast(rows[0], rows[1]) if kind == "plain" else info_nce(rows[0], rows[1], 0.05, chunk=128)).backward()
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_chunks_take_a_fraction_of_the_memory_of_all_logits() -> None:
    def peak(kind: str, size: int) -> float:
        done = subprocess.run([sys.executable, "-c", PEAK, kind, str(size)], capture_output=True, text=True, check=True)
        return float(done.stdout)

    square = 4 * 4096**2 / 1e6  # 67 MB of float32: what all logits of a batch take
    assert peak("plain", 4096) > 2 * square
    assert peak("chunked", 4096) < 0.25 * square


def test_what_logits_take_is_a_square_that_is_kept_or_a_chunk() -> None:
    assert losses.logits_bytes(4096) == 4 * 4096**2
    assert losses.logits_bytes(16384) == 4 * 16384 * (losses.CHUNK_ELEMENTS // 16384) < 10e6
    assert losses.logits_bytes(4096, 10) == 4 * 4096 * 10


def test_bf16_rows_are_contrasted_in_float32() -> None:
    a, b = pair(20, 8, dtype=torch.float32)
    half = info_nce(a.to(torch.bfloat16), b.to(torch.bfloat16), 0.01)
    assert half.dtype == torch.float32
    exact = info_nce(a.to(torch.bfloat16).float(), b.to(torch.bfloat16).float(), 0.01)
    assert torch.equal(half, exact)


def test_intra_is_a_mean_distance_or_a_mean_square() -> None:
    t, x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    assert float(intra(t, x)) == pytest.approx((2**0.5 + 2) / 2)
    assert float(intra(t, x, "squared")) == pytest.approx((2 + 4) / 2)


def test_equal_rows_have_a_finite_intra_gradient() -> None:
    t = F.normalize(torch.randn(4, 3), dim=1).requires_grad_()
    intra(t, t.detach().clone()).backward()
    assert t.grad is not None
    assert torch.equal(t.grad, torch.zeros_like(t))


def test_without_banks_the_total_is_the_overlap_loss() -> None:
    a, b = pair(16, 4)
    total, parts = cmcr_loss((3 * a, b), (None, None))
    assert list(parts) == ["overlap"]
    torch.testing.assert_close(total, plain_info_nce(a, b, 0.01))


def test_a_space_without_a_bank_contrasts_its_overlap_rows_and_has_no_intra_half() -> None:
    a, b = pair(16, 4)
    x, _ = pair(16, 4, seed=1)
    total, parts = cmcr_loss((a, b), (None, x), LossWeights(0.1, 0.2, 0.5))
    torch.testing.assert_close(parts["completed"], plain_info_nce(a, x, 0.2))
    torch.testing.assert_close(parts["intra"], 0.5 * (b - x).norm(dim=1).mean())
    torch.testing.assert_close(total, parts["overlap"] + parts["completed"] + 0.5 * parts["intra"])
