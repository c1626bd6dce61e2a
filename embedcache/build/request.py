"""What a cache is to be built from, and where."""

from dataclasses import dataclass

from embedcache.config.cache import CacheConfig
from embedcache.config.columns import StringColumn
from embedcache.config.encoder import EncoderConfig
from embedcache.config.split import SplitConfig
from embedcache.config.table import DataConfig
from embedcache.config.targets import TargetColumn


@dataclass(frozen=True)
class BuildRequest:
    """The parts of a configuration that phase 1 reads."""

    data: DataConfig
    targets: tuple[TargetColumn, ...]
    split: SplitConfig
    encoder: EncoderConfig
    cache: CacheConfig

    def encoder_of(self, column: StringColumn) -> EncoderConfig:
        """Return the encoder of a string column: its own, or the common one."""
        return column.encoder or self.encoder
