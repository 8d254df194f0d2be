"""Digests of parameters: additive over slices, so that a rank that holds a part and one that holds all agree.

The flattened whole is read as 64-bit words. A word is multiplied by an odd weight for its place in its block of 8,192
words, and a block's sum by an odd weight for the block; all modulo 2**64. Integer sums do not depend on their order, so
a digest is the same on every device and however the tensor is cut, and the digests of slices add up to the whole's. One
changed element always changes it: an odd weight times a difference that is not zero modulo 2**64 is not zero either. It
guards against faults, not against forgery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache

import torch

_WORD = 8
_BLOCK = 1 << 13
_BLOCKS_AT_ONCE = 64
_MASK = (1 << 64) - 1


def slice_digest(values: torch.Tensor, start: int = 0) -> torch.Tensor:
    """Digest of a slice.

    Args:
        values: any shape and numeric type of 1 to 16 bytes; taken in its flattened order.
        start: position of the first element in the flattened whole.

    Returns:
        A 0-dimensional int64 tensor on the device of `values`.
    """
    if values.element_size() > _WORD:  # complex128
        values, start = torch.view_as_real(values.detach()), 2 * start
    weights = _weights(values.device)
    parts: list[torch.Tensor] = []
    for first, words in _words(values.detach().reshape(-1).contiguous(), start):
        block, offset = divmod(first, _BLOCK)
        if offset or words.numel() < _BLOCK:
            sums, count = (words * weights[offset : offset + words.numel()]).sum(), 1
        else:
            rows = words.view(-1, _BLOCK)
            # on a CPU one pass without a buffer; integer matrices are not multiplied on CUDA
            sums = torch.mv(rows, weights) if words.device.type == "cpu" else (rows * weights).sum(dim=1)
            count = len(rows)
        parts.append((sums * _block_weights(words.device, block, count)).sum())
    if len(parts) == 1:
        return parts[0]
    return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.int64, device=values.device)


def combined_digest(digests: Mapping[str, int]) -> str:
    """One hex digest (SHA-256) of many named ones, in the order of their names."""
    sha = hashlib.sha256()
    for name in sorted(digests):
        sha.update(f"{name}={digests[name] & _MASK:016x}\n".encode())
    return sha.hexdigest()


def _words(flat: torch.Tensor, start: int) -> Iterator[tuple[int, torch.Tensor]]:
    """(number of the first word, words): either a part of one block, or some whole blocks.

    Where the slice does not begin and end at words of memory, words are put together in a buffer, zeros around them.
    """
    per_word = _WORD // flat.element_size()
    end = start + flat.numel()
    position = start
    while position < end:
        first = position // per_word
        offset = first % _BLOCK
        last = -(-end // per_word)
        if offset or last - first < _BLOCK:
            count = min(_BLOCK - offset, last - first)
        else:
            count = min((last - first) // _BLOCK, _BLOCKS_AT_ONCE) * _BLOCK
        stop = min(end, (first + count) * per_word)
        part = flat[position - start : stop - start]
        whole = part.numel() == count * per_word
        if whole and part.storage_offset() % per_word == 0 and part.data_ptr() % _WORD == 0:
            words = part.view(torch.int64)
        else:
            words = torch.zeros(count, dtype=torch.int64, device=flat.device)
            begin = position - first * per_word
            words.view(part.dtype)[begin : begin + part.numel()].copy_(part)
        yield first, words
        position = stop


@lru_cache(maxsize=8)
def _weights(device: torch.device) -> torch.Tensor:
    return _odd(torch.arange(1, _BLOCK + 1, dtype=torch.int64)).to(device)


def _block_weights(device: torch.device, first: int, count: int) -> torch.Tensor:
    """Weights of some blocks, which must lie in one or two stretches of `_BLOCKS_AT_ONCE`."""
    stretch, begin = divmod(first, _BLOCKS_AT_ONCE)
    weights = _stretch(device, stretch)
    if begin + count > _BLOCKS_AT_ONCE:
        weights = torch.cat([weights, _stretch(device, stretch + 1)])
    return weights[begin : begin + count]


@lru_cache(maxsize=4096)
def _stretch(device: torch.device, number: int) -> torch.Tensor:
    blocks = torch.arange(number * _BLOCKS_AT_ONCE, (number + 1) * _BLOCKS_AT_ONCE, dtype=torch.int64)
    return _odd(blocks + (1 << 40)).to(device)


def _odd(numbers: torch.Tensor) -> torch.Tensor:
    """Odd 64-bit weights, far apart for neighbours: splitmix64 (Steele, Lea and Flood 2014) with signed shifts."""
    mixed = numbers * (0x9E3779B97F4A7C15 - (1 << 64))
    mixed = (mixed ^ (mixed >> 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    mixed = (mixed ^ (mixed >> 27)) * (0x94D049BB133111EB - (1 << 64))
    return (mixed ^ (mixed >> 31)) | 1
