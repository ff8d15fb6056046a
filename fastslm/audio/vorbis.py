"""Vorbis packets by their bytes: how many samples they hold (Vorbis I specification, sections 4.2 and 4.3)."""

import itertools
from collections.abc import Iterable, Sequence

_IDENTIFICATION_BYTES = 30
_MODE_BITS = 41  # flag of its block size, types of window and transform (16 bits of 0 each), mapping
_MOST_MODES, _MOST_MAPPINGS = 64, 64


def num_samples(identification: bytes, setup: bytes, packets: Iterable[bytes]) -> int:
    """Return how many samples packets from the first one on hold: each half of its block and of the one before.

    Args:
        identification: the first header.
        setup: the third header.
        packets: of sound; of each the first byte is enough.
    """
    if len(identification) < _IDENTIFICATION_BYTES:
        return 0
    sizes = 1 << (identification[28] & 15), 1 << (identification[28] >> 4)
    flags = _block_flags(setup)
    mask = (1 << (len(flags) - 1).bit_length()) - 1
    blocks = [sizes[flags[mode]] for packet in packets if packet and (mode := packet[0] >> 1 & mask) < len(flags)]
    return sum(before + block for before, block in itertools.pairwise(blocks)) // 4


def _block_flags(setup: bytes) -> Sequence[int]:
    """Return for each mode whether its blocks are the long ones; none where no modes are found.

    They are the last thing in the header, and are read from its end: what comes before can only be read by decoding it.
    """
    bits = int.from_bytes(setup, "little")
    end, num_modes = bits.bit_length() - 1, 0  # the last bit is a 1
    for count in range(1, min(_MOST_MODES, (end - 6) // _MODE_BITS) + 1):
        mode = bits >> end - count * _MODE_BITS & (1 << _MODE_BITS) - 1
        if mode >> 33 >= _MOST_MAPPINGS or mode >> 1 & 0xFFFFFFFF:
            break
        if (bits >> end - count * _MODE_BITS - 6 & 63) + 1 == count:
            num_modes = count
    return [bits >> end - count * _MODE_BITS & 1 for count in range(num_modes, 0, -1)]
