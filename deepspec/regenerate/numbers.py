"""A set of small whole numbers that takes a bit for each."""

from __future__ import annotations


class NumberSet:
    """Numbers from 0 up, in as many bits as the largest one."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._count = 0

    def __contains__(self, number: int) -> bool:
        place, bit = divmod(number, 8)
        return place < len(self._bits) and bool(self._bits[place] >> bit & 1)

    def __len__(self) -> int:
        return self._count

    def add(self, number: int) -> bool:
        """Whether the number is new."""
        if number in self:
            return False
        place, bit = divmod(number, 8)
        if place >= len(self._bits):
            self._bits.extend(bytes(max(place + 1, 2 * len(self._bits)) - len(self._bits)))
        self._bits[place] |= 1 << bit
        self._count += 1
        return True
