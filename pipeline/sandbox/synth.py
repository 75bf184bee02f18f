"""Sounds of the sandbox: kind is timbre, size pitch, material knock and damping, count how often it sounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .world import Composition

Samples = npt.NDArray[np.float32]
_Wave = npt.NDArray[np.float64]

RATE = 16_000
SECONDS = 1.5
LENGTH = int(RATE * SECONDS)
_EVENT = int(0.30 * RATE)
_T: _Wave = np.arange(_EVENT, dtype=np.float64) / RATE
_FFT = 32_768
_FREQUENCIES: _Wave = np.fft.rfftfreq(_FFT, 1 / RATE)
_PITCH_OF_SIZE = {"small": 1.5, "medium": 1.0, "large": 0.66}


# per material: what one hears when it is struck, as (frequency, decay a second), and how loud beside the toy's voice
_STRIKES: dict[str, tuple[tuple[tuple[float, float], ...], float]] = {
    "metal": (((2450, 9), (3720, 13), (5300, 18)), 0.30),
    "wood": (((620, 70), (1330, 95)), 0.55),
    "glass": (((4550, 26), (6350, 40)), 0.30),
    "rubber": (((140, 28),), 0.55),
}


def synthesise(composition: Composition, rng: np.random.Generator) -> Samples:
    """Make a sound, (LENGTH,) float32 within -1..1 at RATE, mono.

    Tuning, timing, background noise and loudness are nuisance; the colour is not audible.
    """
    pitch = _PITCH_OF_SIZE[composition.size] * float(rng.uniform(0.96, 1.04))
    strike = _strike(composition.material, float(rng.uniform(0.97, 1.03)))
    start = rng.uniform(0.01, 0.06)
    period = rng.uniform(0.32, 0.355)
    dry, struck = np.zeros(LENGTH), np.zeros(LENGTH)
    for i in range(composition.count):
        event = _EVENTS[composition.kind](pitch, rng) * _damping(composition.material) * rng.uniform(0.85, 1.0)
        first = int((start + i * period) * RATE)
        dry[first : first + _EVENT] += event[: LENGTH - first]
        struck[first : first + _EVENT] += strike[: LENGTH - first]
    wet = np.fft.irfft(np.fft.rfft(dry, _FFT) * _tilt(composition.material), _FFT)[:LENGTH]
    wet = wet / (np.abs(wet).max() + 1e-9) + struck * rng.uniform(0.8, 1.2)
    noise = _noise(rng) * 10 ** (-rng.uniform(22, 42) / 20)
    sound = (wet / np.abs(wet).max() + noise) * rng.uniform(0.45, 0.85)
    fade = int(0.02 * RATE)
    sound[-fade:] *= np.linspace(1, 0, fade)
    return np.asarray(np.clip(sound, -1, 1), np.float32)


def _wave(values: npt.ArrayLike) -> _Wave:
    """Give values their type."""
    return np.asarray(values, np.float64)


def _damping(material: str) -> _Wave:
    """Envelope that the material lays over each event, (EVENT,)."""
    rate = {"metal": 0.5, "wood": 11.0, "glass": 5.0, "rubber": 3.0}[material]
    attack = 0.025 if material == "rubber" else 0.002
    return _wave(np.exp(-rate * _T) * np.minimum(_T / attack, 1) * np.minimum((_T[-1] - _T) / 0.02, 1))


def _strike(material: str, tune: float) -> _Wave:
    """Make the knock of the material at the start of each event, (EVENT,)."""
    partials, level = _STRIKES[material]
    tones = [np.sin(2 * np.pi * f * tune * _T) * np.exp(-decay * _T) for f, decay in partials]
    return _wave(np.sum(tones, axis=0) * level * np.minimum((_T[-1] - _T) / 0.02, 1))


def _tilt(material: str) -> _Wave:
    """Gain of the material by frequency, (FFT / 2 + 1,): metal and glass bright, wood a box, rubber dull."""
    f = _FREQUENCIES
    if material == "metal":
        return np.asarray(0.5 + 1 / (1 + (1800 / (f + 1)) ** 2))
    if material == "wood":
        return np.asarray((0.25 + np.exp(-(((f - 850) / 650) ** 2))) / (1 + (f / 3000) ** 2))
    if material == "glass":
        return np.asarray(0.12 + 1 / (1 + (1500 / (f + 1)) ** 2))
    return np.asarray(1 / (1 + (f / 650) ** 2) + 0.02)


def _noise(rng: np.random.Generator) -> _Wave:
    """Soft room noise, (LENGTH,), about unit peak."""
    white = rng.standard_normal(LENGTH, np.float32)
    smooth = np.convolve(white, np.full(6, 1 / 6, np.float32), "same")
    return np.asarray(smooth + 0.15 * white, np.float64)


def _harmonics(phase: _Wave, levels: npt.ArrayLike) -> _Wave:
    """Sum of harmonics of a phase in cycles, levels of the first, second, ..."""
    out = np.zeros_like(phase)
    for n, level in enumerate(np.asarray(levels, np.float64), 1):
        out += level * np.sin(2 * np.pi * n * phase)
    return out


def _phase(frequency: _Wave | float) -> _Wave:
    """Cycles run through at a frequency that may change, (EVENT,)."""
    return _wave(np.cumsum(np.broadcast_to(frequency, _T.shape)) / RATE)


def _bell(p: float, rng: np.random.Generator) -> _Wave:
    partials = ((1, 1.0, 5), (2.0, 0.6, 8), (2.41, 0.5, 9), (3.01, 0.35, 12), (4.52, 0.3, 16))
    return _wave(np.sum([a * np.sin(2 * np.pi * 540 * p * r * _T) * np.exp(-d * _T) for r, a, d in partials], axis=0))


def _drum(p: float, rng: np.random.Generator) -> _Wave:
    body = np.sin(2 * np.pi * _phase(105 * p * (1 + 1.6 * np.exp(-_T * 38)))) * np.exp(-_T * 11)
    return _wave(body + 0.35 * rng.standard_normal(_EVENT) * np.exp(-_T * 70))


def _dog(p: float, rng: np.random.Generator) -> _Wave:
    glide = 330 * p * (1 + 0.45 * np.exp(-(((_T - 0.05) / 0.05) ** 2)))
    voice = _harmonics(_phase(glide), (0.5, 0.9, 1.0, 0.7, 0.4, 0.3, 0.15))
    rough = 1 + 0.5 * rng.standard_normal(_EVENT)
    return _wave(voice * rough * np.exp(-(((_T - 0.07) / 0.05) ** 2)))


def _bird(p: float, rng: np.random.Generator) -> _Wave:
    local = (_T % 0.13) / 0.13
    sweep = 1750 * p * (1 + 0.55 * local)
    return _wave(np.sin(2 * np.pi * _phase(sweep)) * np.sin(np.pi * np.minimum(local * 1.25, 1)) * (_T < 0.26))


def _engine(p: float, rng: np.random.Generator) -> _Wave:
    chug = 0.25 + np.abs(np.sin(2 * np.pi * 10.5 * _T)) ** 3
    return _wave(_harmonics(_phase(72 * p), 1 / np.arange(1, 14)) * chug)


def _clock(p: float, rng: np.random.Generator) -> _Wave:
    later = np.maximum(_T - 0.14, 0)
    tick = np.sin(2 * np.pi * 2100 * p * _T) * np.exp(-_T * 120)
    tock = np.sin(2 * np.pi * 1500 * p * later) * np.exp(-later * 120) * (_T >= 0.14)
    return _wave(tick + tock)


def _whistle(p: float, rng: np.random.Generator) -> _Wave:
    trill = 1250 * p * (1 + 0.05 * np.sin(2 * np.pi * 31 * _T))
    tone = np.sin(2 * np.pi * _phase(trill)) * (0.75 + 0.25 * np.sin(2 * np.pi * 31 * _T))
    return _wave((tone + 0.06 * rng.standard_normal(_EVENT)) * np.minimum(_T / 0.03, 1))


def _guitar(p: float, rng: np.random.Generator) -> _Wave:
    out = np.zeros(_EVENT)
    for note, delay in ((1.0, 0.0), (1.26, 0.03), (1.5, 0.06)):
        later = np.maximum(_T - delay, 0)
        for n in range(1, 8):
            out += np.sin(2 * np.pi * 200 * p * note * n * later) * np.exp(-later * (5 + 3 * n)) / n * (delay <= _T)
    return out


def _trumpet(p: float, rng: np.random.Generator) -> _Wave:
    swell = np.minimum(_T / 0.06, 1)
    phase = _phase(350 * p * (1 + 0.008 * np.sin(2 * np.pi * 6 * _T)))
    soft, bright = _harmonics(phase, (1, 0.8, 0.5)), _harmonics(phase, (0, 0, 0.5, 0.8, 0.7, 0.6, 0.5, 0.3))
    return _wave(soft * swell + bright * swell**3)


def _cat(p: float, rng: np.random.Generator) -> _Wave:
    glide = 520 * p * (1 + 0.5 * np.sin(np.pi * _T / 0.3) ** 2)
    phase = _phase(glide)
    mouth = np.sin(np.pi * _T / 0.3)
    return _wave((_harmonics(phase, (1, 0.3)) + mouth * _harmonics(phase, (0, 0.6, 0.8, 0.3))) * mouth**0.7)


def _frog(p: float, rng: np.random.Generator) -> _Wave:
    pulse = np.abs(np.sin(np.pi * 42 * _T)) ** 6
    croak = np.sin(2 * np.pi * 480 * p * _T) + 0.6 * np.sin(2 * np.pi * 910 * p * _T)
    return _wave(croak * pulse * np.sin(np.pi * np.minimum(_T / 0.24, 1)) ** 0.6)


def _rattle(p: float, rng: np.random.Generator) -> _Wave:
    noise = rng.standard_normal(_EVENT)
    shift = np.cos(2 * np.pi * 3000 * p * _T)
    smooth = np.convolve(noise, np.hanning(15) / 7, "same")
    grains = (0.15 + np.exp(-(_T % 0.075) * 60)) * (_T < 0.29)
    return _wave(smooth * shift * grains * 2)


def _bee(p: float, rng: np.random.Generator) -> _Wave:
    wobble = 235 * p * (1 + 0.03 * np.sin(2 * np.pi * 13 * _T + rng.uniform(0, 6)))
    return _wave(_harmonics(_phase(wobble), 1 / np.arange(1, 12) ** 0.8) * (0.8 + 0.2 * np.sin(2 * np.pi * 26 * _T)))


def _kettle(p: float, rng: np.random.Generator) -> _Wave:
    rise = 900 * p * (1 + 0.8 * _T / 0.3)
    hiss = np.diff(rng.standard_normal(_EVENT + 1))
    return _wave((0.55 * np.sin(2 * np.pi * _phase(rise)) + 0.28 * hiss) * np.minimum(_T / 0.1, 1))


def _ball(p: float, rng: np.random.Generator) -> _Wave:
    spring = 190 * p * (1 + 0.9 * _T / 0.3 + 0.22 * np.sin(2 * np.pi * 17 * _T))
    return _wave(_harmonics(_phase(spring), (1, 0.35, 0.12)) * np.exp(-_T * 7))


def _phone(p: float, rng: np.random.Generator) -> _Wave:
    tone = np.where(np.sin(2 * np.pi * 17 * _T) > 0, 820 * p, 1090 * p)
    return _harmonics(_phase(tone), (1, 0.1, 0.25)) * (_T < 0.27)


_EVENTS: dict[str, Callable[[float, np.random.Generator], _Wave]] = {
    "bell": _bell,
    "drum": _drum,
    "dog": _dog,
    "bird": _bird,
    "engine": _engine,
    "clock": _clock,
    "whistle": _whistle,
    "guitar": _guitar,
    "trumpet": _trumpet,
    "cat": _cat,
    "frog": _frog,
    "rattle": _rattle,
    "bee": _bee,
    "kettle": _kettle,
    "ball": _ball,
    "phone": _phone,
}
