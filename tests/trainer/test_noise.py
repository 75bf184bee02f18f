from __future__ import annotations

import numpy as np
import pytest
import torch
from cmcr.trainer.noise import normal_rows, perturb, philox4x32


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF, 0xFFFFFFFF), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_known_answers(
    counter: tuple[int, ...], key: tuple[int, int], expected: str
) -> None:
    words = philox4x32(tuple(torch.tensor([word]) for word in counter), key)
    assert " ".join(f"{int(word):08x}" for word in words) == expected


def test_noise_is_standard_normal() -> None:
    noise = normal_rows(torch.arange(2000), 509, seed=3, step=5).double().flatten()
    count = len(noise)
    assert abs(noise.mean()) < 4 / count**0.5
    assert abs(noise.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs((noise**3).mean()) < 4 * (15 / count) ** 0.5
    assert abs((noise**4).mean() - 3) < 4 * (96 / count) ** 0.5
    quantiles = torch.quantile(noise[:1_000_000], torch.tensor([0.001, 0.16, 0.5, 0.84, 0.999], dtype=torch.float64))
    np.testing.assert_allclose(quantiles, [-3.0902, -0.9945, 0, 0.9945, 3.0902], atol=0.02)


def test_the_noise_of_a_row_is_the_same_in_every_batch() -> None:
    whole = normal_rows(torch.arange(1000), 37, seed=1, step=9, stream=2)
    some = torch.tensor([999, 3, 3, 512, 0])
    assert torch.equal(normal_rows(some, 37, seed=1, step=9, stream=2), whole[some])
    assert torch.equal(normal_rows(torch.arange(1000), 20, seed=1, step=9, stream=2), whole[:, :20])


def test_rows_steps_streams_and_seeds_are_independent() -> None:
    rows = torch.arange(400)
    base = normal_rows(rows, 256, seed=1, step=1, stream=0)
    others = {
        "row": normal_rows(rows + 400, 256, seed=1, step=1, stream=0),
        "row far away": normal_rows(rows + (1 << 32), 256, seed=1, step=1, stream=0),
        "step": normal_rows(rows, 256, seed=1, step=2, stream=0),
        "stream": normal_rows(rows, 256, seed=1, step=1, stream=1),
        "seed": normal_rows(rows, 256, seed=2, step=1, stream=0),
        "high seed": normal_rows(rows, 256, seed=1 + (1 << 32), step=1, stream=0),
    }
    limit = 5 / base.numel() ** 0.5
    for name, other in others.items():
        assert abs(float((base * other).mean())) < limit, name
        assert abs(float((base.square() * other.square()).mean() - 1)) < 8 * limit, name
    neighbours = (base[:, :-1] * base[:, 1:]).mean()
    assert abs(float(neighbours)) < limit


def test_perturbed_rows_are_unit_and_the_input_is_left_alone() -> None:
    rows, vectors = torch.arange(50), torch.nn.functional.normalize(torch.randn(50, 64), dim=1)
    before = vectors.clone()
    out = perturb(rows, vectors, 0.0632, seed=0, step=0, stream=0)
    expected = vectors + 0.0632 * normal_rows(rows, 64, seed=0, step=0, stream=0)
    torch.testing.assert_close(out, torch.nn.functional.normalize(expected, dim=1))
    assert torch.equal(vectors, before)
    torch.testing.assert_close(perturb(rows, 3 * vectors, 0.0, seed=0, step=0, stream=0), vectors)
