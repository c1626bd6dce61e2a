"""What a request may ask for, and how much may wait."""

from dataclasses import dataclass

from fusionnet.trained.batches import BATCH_ROWS


@dataclass(frozen=True)
class Limits:
    """Whatever is beyond is refused before it costs memory or time."""

    rows: int = 10_000  # of one request
    body_bytes: int = 16 << 20  # of one request
    new_strings: int = 500  # of one request and column: each is encoded, tens of milliseconds each
    text_characters: int = 4_000  # of one cell
    candidates: int = 200_000  # of one search for designs, some thousands a second
    calls: int = 256  # that are read, wait or are computed
    waiting_bodies: int = 8  # of the largest size; more than that in memory is refused
    body_s: float = 30.0  # in which a body has to arrive
    retry_s: int = 1  # what a client that is refused for want of room is told to wait
    batch_rows: int = BATCH_ROWS  # calls are joined up to so many rows; 1: none is joined
    connections: int = 1_024

    @property
    def held_bytes(self) -> int:
        """How many bytes of bodies may be in memory."""
        return self.waiting_bodies * self.body_bytes
