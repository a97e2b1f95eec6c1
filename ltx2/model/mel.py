"""A waveform as the log-mel spectrogram the audio VAE was trained on."""

import math
from functools import lru_cache

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE = 16_000
N_FFT = 1024
HOP = 160
MELS = 64
FLOOR = 1e-5

LARGEST_KERNEL = 2**20
"""Taps of the resampling filter over all its phases; usual rates need less than a tenth of that."""
LOWPASS_WIDTH = 6
ROLLOFF = 0.99


def log_mel(waveform: Tensor) -> Tensor:
    """Logarithmic mel magnitudes of a 16 kHz waveform.

    Args:
        waveform: ``[channels, samples]`` float32. One too short to be reflected at its ends (up to 512
            samples, 32 ms) is filled with silence.

    Returns:
        ``[channels, samples // 160 + 1, 64]`` float32.
    """
    waveform = torch.nn.functional.pad(waveform, (0, max(0, N_FFT // 2 + 1 - waveform.shape[1])))
    window = torch.hann_window(N_FFT, device=waveform.device)
    spectrum = torch.stft(
        waveform, N_FFT, HOP, window=window, center=True, pad_mode="reflect", return_complex=True
    ).abs()
    mel = spectrum.transpose(1, 2) @ _filters().to(waveform.device)
    return mel.clamp(min=FLOOR).log()


@lru_cache(maxsize=1)
def _filters() -> Tensor:
    """``[513, 64]`` triangular filters, Slaney's scale and area norm, 0 to 8 kHz."""
    filters = mel_filter_bank(
        num_frequency_bins=N_FFT // 2 + 1,
        num_mel_filters=MELS,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).float()


def is_usual(rate: int, new_rate: int = SAMPLE_RATE) -> bool:
    """Whether :func:`resample` can take this rate: the filter of two rates without a common factor is huge."""
    common = math.gcd(rate, new_rate)
    return (rate // common) * (new_rate // common) <= LARGEST_KERNEL


def resample(waveform: Tensor, rate: int, new_rate: int = SAMPLE_RATE) -> Tensor:
    """Band-limited resampling by torchaudio's definition: a windowed sinc of width 6, rolloff 0.99, Hann.

    Args:
        waveform: ``[channels, samples]`` float32.
        rate, new_rate: samples a second.

    Returns:
        ``[channels, ceil(samples * new_rate / rate)]`` float32.
    """
    if rate == new_rate:
        return waveform
    common = math.gcd(rate, new_rate)
    rate, new_rate = rate // common, new_rate // common
    kernel, width = _sinc_kernel(rate, new_rate)
    padded = torch.nn.functional.pad(waveform, (width, width + rate))
    phases = torch.nn.functional.conv1d(padded[:, None], kernel.to(waveform.device), stride=rate)
    length = math.ceil(waveform.shape[1] * new_rate / rate)
    return phases.transpose(1, 2).reshape(waveform.shape[0], -1)[:, :length]


@lru_cache(maxsize=8)
def _sinc_kernel(rate: int, new_rate: int) -> tuple[Tensor, int]:
    """The filter ``[new_rate, 1, taps]`` of each output phase, and its half width in input samples.

    In float32 throughout: a float64 kernel is more exact and 2e-4 away from what the model was trained on.
    """
    cutoff = min(rate, new_rate) * ROLLOFF
    width = math.ceil(LOWPASS_WIDTH * rate / cutoff)
    taps = torch.arange(-width, width + rate)[None, None] / rate
    time = torch.arange(0, -new_rate, -1)[:, None, None] / new_rate + taps
    time = (time * cutoff).clamp(-LOWPASS_WIDTH, LOWPASS_WIDTH)
    window = torch.cos(time * math.pi / LOWPASS_WIDTH / 2) ** 2
    time = time * math.pi
    sinc = torch.where(time == 0, torch.ones(()), time.sin() / time)
    return sinc * (window * (cutoff / rate)), width
