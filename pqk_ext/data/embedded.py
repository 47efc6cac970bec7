"""The data inside the package, read with numpy alone (no torch).

What it is, where it comes from and under which licences: `assets/ATTRIBUTION.txt`.
"""

from __future__ import annotations

import hashlib
import io
import lzma
from functools import lru_cache
from importlib import resources
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from pqk_ext.errors import DataError

Split = Literal["train", "validation", "test", "all"]

#: Labels of the keyword-spotting set; a clip's target is an index into this tuple. MLPerf Tiny's order.
KEYWORDS: Final = (
    "down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "_silence_", "_unknown_",
)  # fmt: skip

_FOLDS: Final[dict[str, tuple[int, ...]]] = {
    "train": (0, 1, 2),
    "validation": (3,),
    "test": (4,),
    "all": (0, 1, 2, 3, 4),
}


def asset_bytes(name: str) -> bytes:
    """Return a file of the package's `assets` folder after checking its SHA-256.

    Raises:
        DataError: The file is missing, or is not the one that was packaged.
    """
    folder = resources.files("pqk_ext.data") / "assets"
    path = folder / name
    try:
        content = path.read_bytes()
        listed = (folder / "SHA256SUMS").read_text()
    except FileNotFoundError as error:
        raise DataError(str(path), expected="a file of the package", got=f"no file ({error})") from error
    digests = {file: digest for digest, file in (line.split() for line in listed.splitlines())}
    got = hashlib.sha256(content).hexdigest()
    if got != digests[name]:
        raise DataError(
            str(path), expected=f"SHA-256 {digests[name]}", got=f"{got} ({len(content)} bytes): reinstall the package"
        )
    return content


@lru_cache(maxsize=1)
def _clips() -> dict[str, npt.NDArray[np.generic]]:
    stored = np.load(io.BytesIO(lzma.decompress(asset_bytes("keyword_spotting.npz.xz"))), allow_pickle=False)
    bits = (stored["high"].astype(np.uint16) << 8) | stored["low"]
    return {
        "mfcc": np.ascontiguousarray(bits.view(np.float16).transpose(1, 2, 0)),
        **{name: stored[name] for name in ("label", "fold", "speaker", "path")},
    }


def _rows(split: str) -> npt.NDArray[np.bool_]:
    if split not in _FOLDS:
        raise ValueError(f"split: expected one of {', '.join(_FOLDS)}, got {split!r}")
    return np.isin(_clips()["fold"], _FOLDS[split])


def keyword_spotting_arrays(split: Split = "train") -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return `(x, y)`: the embedded keyword-spotting clips as numpy arrays.

    The same values as `pqk_ext.data.keyword_spotting`, whose documentation describes the set.

    Args:
        split: `"train"`, `"validation"`, `"test"` or `"all"`.

    Returns:
        `x` float32 (N, 1, 49, 10): 49 frames of 10 mel-frequency cepstral coefficients each;
        `y` int64 (N,): indices into `KEYWORDS`. Fresh arrays: changing them changes nothing else.

    Raises:
        ValueError: Unknown split.
        DataError: The packaged file is missing or damaged.
    """
    rows = _rows(split)
    clips = _clips()
    return clips["mfcc"][rows][:, None].astype(np.float32), clips["label"][rows].astype(np.int64)


def keyword_spotting_sources(split: Split = "all") -> tuple[list[str], list[str]]:
    """Return `(speakers, paths)` of the clips, in the order of `keyword_spotting_arrays`.

    A speaker is 8 hexadecimal digits, empty for `_silence_`; a path is that of the clip in the original test set.
    """
    rows = _rows(split)
    clips = _clips()
    speakers, paths = clips["speaker"][rows].tolist(), clips["path"][rows].tolist()
    return [s.decode() for s in speakers], [p.decode() for p in paths]
