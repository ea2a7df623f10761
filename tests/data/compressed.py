"""Ways to compress, by the suffix that names each."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd.compress}
OPEN: dict[str, Callable[[Path, str], BinaryIO]] = {".gz": gzip.open, ".zst": zstd.open}
