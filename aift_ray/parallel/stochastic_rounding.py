"""Stochastic rounding to bf16, whose random bits are a function of a key and of a number's place.

A number is rounded up with the probability of what rounding down would cut off, so that updates
far smaller than a step of bf16 add up to what they are in the mean. A shard of a weight is rounded
as it is in the whole weight.
"""

from __future__ import annotations

import hashlib

import torch

# bits of an fp32 number that bf16 has no place for
_CUT = 0xFFFF
# the multipliers of MurmurHash3's last mixing, as signed 32-bit numbers
_FIRST, _SECOND = 0x85EBCA6B - 2**32, 0xC2B2AE35 - 2**32


def key_of(seed: int, name: str, step: int) -> int:
    """The key of a weight's rounding in a step, a signed 32-bit number."""
    digest = hashlib.blake2b(f"{seed} {step} {name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)


def rounded(numbers: torch.Tensor, key: int, begin: int) -> torch.Tensor:
    """`numbers`, (n,) in fp32, rounded to bf16.

    Args:
        begin: place of the first of them in the whole weight.
    """
    bits = numbers.view(torch.int32) + _random_bits(numbers, key, begin)
    return bits.bitwise_and_(~_CUT).view(torch.float32).bfloat16()


def _random_bits(numbers: torch.Tensor, key: int, begin: int) -> torch.Tensor:
    """16 random bits for each place, (n,) int32."""
    places = torch.arange(begin, begin + len(numbers), device=numbers.device)
    mixed = places.to(torch.int32).bitwise_xor_(key)
    # a shift keeps the sign: its copies are masked
    mixed ^= (mixed >> 16) & 0xFFFF
    mixed *= _FIRST
    mixed ^= (mixed >> 13) & 0x7FFFF
    mixed *= _SECOND
    mixed ^= (mixed >> 16) & 0xFFFF
    return mixed.bitwise_and_(_CUT)
