"""The data sets that need no network: scanned digits, scenes and videos of them, made by TFDS builders."""

from collections.abc import Mapping
from types import MappingProxyType

from attn_flax.data.embedded.builder import Embedded, prepare
from attn_flax.data.embedded.digits import Digits
from attn_flax.data.embedded.scenes import DigitScenes
from attn_flax.data.embedded.videos import DigitVideos

EMBEDDED: Mapping[str, type[Embedded]] = MappingProxyType(
    {builder.name: builder for builder in (Digits, DigitScenes, DigitVideos)}
)
"""Their builders, by their names."""

__all__ = ["EMBEDDED", "DigitScenes", "DigitVideos", "Digits", "Embedded", "prepare"]
