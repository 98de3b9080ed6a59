"""Gaussian noise at the speed of a simulation: Box-Muller on the AES stream, rounded to the grid.

Box and Muller, "A Note on the Generation of Random Normal Deviates" (1958): for uniform u, v the numbers
sqrt(-2 ln u) cos(2 pi v) and sqrt(-2 ln u) sin(2 pi v) are independent and normal. In float32, on 31 and 32 bits: tails
end at 6.66 standard deviations, which is fit for a simulation, whose guarantee nobody relies on, and for nothing else.
"""

import math

import torch

from fedlearn.crypto.keystream import Entropy
from fedlearn.privacy.quantization import IntVector

__all__ = ["box_muller"]


def box_muller(noise_std: int, dimension: int, entropy: Entropy) -> IntVector:
    """`dimension` draws of standard deviation `noise_std` grid units, rounded, as (dimension,) int64.

    Guarantees: two calls on one stream share no random word; the same entropy gives the same draws.
    """
    half = (dimension + 1) // 2
    words = torch.frombuffer(bytearray(entropy(8 * half)), dtype=torch.int32).view(2, half)
    # Small numbers keep all their bits in float32, and the small ones are the tails.
    radius = (words[0] & 0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).log_().mul_(-2).sqrt_().mul_(noise_std)
    angle = words[1].float().mul_(math.pi * 2.0**-31)
    pairs = torch.stack([torch.cos(angle).mul_(radius), torch.sin(angle).mul_(radius)])
    return pairs.view(-1)[:dimension].round_().to(torch.int64).numpy()
