"""Digests of parameters: additive over slices, so that a rank that holds a part and one that holds all agree.

An element's bits are multiplied by an odd 32-bit weight for its place in its block of 65,536 elements; the sums of the
blocks, each multiplied by an odd 64-bit weight, are summed modulo 2**64. Integer sums do not depend on their order, so
a digest is the same on every device and however the tensor is cut, and the digests of slices add up to the whole's. One
changed element always changes it: an odd weight times a difference that is not zero modulo 2**32 is not zero either. It
guards against faults, not against forgery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import torch

_BLOCK = 1 << 16
_BLOCKS_AT_ONCE = 16
_MASK = (1 << 64) - 1


def slice_digest(values: torch.Tensor, start: int = 0) -> torch.Tensor:
    """Digest of a slice.

    Args:
        values: any shape and numeric type of 1, 2, 4 or 8 bytes; taken in its flattened order.
        start: position of the first element in the flattened whole.

    Returns:
        A 0-dimensional int64 tensor on the device of `values`.
    """
    bits = _bits(values.detach().reshape(-1))
    words = bits.numel() // max(values.numel(), 1)
    start *= words
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    weights = _weights(bits.device)
    position, end = start, start + bits.numel()
    while position < end:
        offset = position % _BLOCK
        block = position // _BLOCK
        if offset or end - position < _BLOCK:
            size = min(_BLOCK - offset, end - position)
            part = bits[position - start : position - start + size] * weights[offset : offset + size]
            total += part.sum(dtype=torch.int64) * _block_weight(block)
        else:
            blocks = min((end - position) // _BLOCK, _BLOCKS_AT_ONCE)
            size = blocks * _BLOCK
            part = bits[position - start : position - start + size].view(blocks, _BLOCK) * weights
            factors = torch.tensor([_block_weight(block + i) for i in range(blocks)], device=bits.device)
            total += (part.sum(dim=1, dtype=torch.int64) * factors).sum()
        position += size
    return total


def combined_digest(digests: Mapping[str, int]) -> str:
    """One hex digest (SHA-256) of many named ones, in the order of their names."""
    sha = hashlib.sha256()
    for name in sorted(digests):
        sha.update(f"{name}={digests[name] & _MASK:016x}\n".encode())
    return sha.hexdigest()


def _bits(flat: torch.Tensor) -> torch.Tensor:
    size = flat.element_size()
    if size in (4, 8):
        return flat.contiguous().view(torch.int32)
    return flat.contiguous().view(torch.uint8 if size == 1 else torch.int16).to(torch.int32)


@lru_cache(maxsize=8)
def _weights(device: torch.device) -> torch.Tensor:
    places = torch.arange(1, _BLOCK + 1, dtype=torch.int64)
    mixed = places * (0x9E3779B97F4A7C15 - (1 << 64))
    mixed = (mixed ^ (mixed >> 29)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    return ((mixed >> 32).to(torch.int32) | 1).to(device)


def _block_weight(block: int) -> int:
    """splitmix64 (Steele, Lea and Flood 2014) of the block's number, made odd, as a signed 64-bit number."""
    mixed = ((block + 1) * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = (mixed ^ (mixed >> 27)) | 1
    return mixed - (1 << 64) if mixed >> 63 else mixed
