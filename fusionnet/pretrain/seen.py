"""Which strings have come already, in 8 to 32 bytes each, however long they are.

A string is known by 64 bits of its BLAKE2b digest: of 10 million strings one is taken for another
with a chance of three in a million, and is then left out.
"""

import hashlib

import numpy as np

_FIRST_SLOTS = 1 << 12
_FILLED = 0.5  # of the slots, before there are twice as many


class Seen:
    """A set of strings, by hash, in an open-addressed table."""

    def __init__(self) -> None:
        self._slots = np.zeros(_FIRST_SLOTS, dtype=np.uint64)  # 0: empty
        self._num = 0

    def __len__(self) -> int:
        """Return how many distinct strings have come."""
        return self._num

    def add(self, text: str) -> bool:
        """Note a string, and return whether it is new."""
        if self._num >= _FILLED * len(self._slots):
            self._grow()
        is_new = self._put(_key(text))
        self._num += is_new
        return is_new

    def _put(self, key: int) -> bool:
        slots, last = self._slots, len(self._slots) - 1
        place = key & last
        while (found := slots.item(place)) != 0:
            if found == key:
                return False
            place = (place + 1) & last
        slots[place] = key
        return True

    def _grow(self) -> None:
        keys = self._slots[self._slots != 0]
        self._slots = np.zeros(2 * len(self._slots), dtype=np.uint64)
        for key in keys.tolist():
            self._put(key)


def _key(text: str) -> int:
    """Return a number from 1 to 2^64 - 1."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1
