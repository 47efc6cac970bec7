"""Write the data that the package carries, from a folder with the source archives.

    python tools/make_embedded_data.py DATA_FOLDER

Reads `speech_commands_mfcc.npz.xz` and `mlperf_tiny_weights.npz.xz` and writes to `pqk_ext/data/assets`:

* `keyword_spotting.npz.xz`: 4,890 clips as 49x10 features, exactly the float16 values of the source. A float16
  array compresses badly as it is; its high and its low bytes, each coefficient on its own, compress well.
* `ds_cnn.safetensors`: the trained DS-CNN under the names of `pqk_ext.models.create("ds_cnn")`.
* `SHA256SUMS`: digests of the two, checked whenever they are read (`sha256sum -c` understands it too).

Everything written is read back and compared with the source before the digests are written.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import lzma
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

REPOSITORY = Path(__file__).resolve().parent.parent
ASSETS = REPOSITORY / "pqk_ext" / "data" / "assets"
SIZE_LIMIT = 4_000_000


def read_archive(path: Path) -> dict[str, np.ndarray]:
    with lzma.open(path) as file:
        return dict(np.load(io.BytesIO(file.read()), allow_pickle=False))


def write_clips(source: dict[str, np.ndarray], target: Path) -> None:
    bits = np.ascontiguousarray(source["mfcc"].view(np.uint16).transpose(2, 0, 1))
    buffer = io.BytesIO()
    np.savez(
        buffer,
        high=(bits >> 8).astype(np.uint8),
        low=(bits & 255).astype(np.uint8),
        label=source["y"],
        fold=source["fold"],
        speaker=source["speaker"],
        path=source["path"],
        keywords=source["labels"],
    )
    packed = [
        lzma.compress(
            buffer.getvalue(),
            check=lzma.CHECK_CRC64,
            filters=[{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": lc, "pb": 0}],
        )
        for lc in range(5)
    ]
    target.write_bytes(min(packed, key=len))


def check_clips(source: dict[str, np.ndarray], target: Path) -> None:
    stored = read_archive(target)
    bits = (stored["high"].astype(np.uint16) << 8) | stored["low"]
    pairs = {
        "mfcc": (bits.transpose(1, 2, 0), source["mfcc"].view(np.uint16)),
        "label": (stored["label"], source["y"]),
        "fold": (stored["fold"], source["fold"]),
        "speaker": (stored["speaker"], source["speaker"]),
        "path": (stored["path"], source["path"]),
    }
    for name, (got, expected) in pairs.items():
        if not np.array_equal(got, expected):
            sys.exit(f"{target}: {name} differs from the source after reading back")


def write_weights(source: Path, target: Path) -> None:
    sys.path.insert(0, str(REPOSITORY))
    from pqk_ext.models.pretrained import mlperf_ds_cnn_state

    state = mlperf_ds_cnn_state(read_archive(source))
    # One entry only: safetensors writes several in random order, and the file should not change from run to run.
    target.write_bytes(save(state, metadata={"origin": "MLPerf Tiny, keyword spotting, Apache-2.0"}))
    stored = load_file(target)
    if stored.keys() != state.keys() or any(not np.array_equal(stored[k], state[k]) for k in state):
        sys.exit(f"{target}: weights differ from the source after reading back")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_folder", type=Path, help="folder with the source archives")
    folder = parser.parse_args().data_folder
    ASSETS.mkdir(parents=True, exist_ok=True)

    clips, weights = ASSETS / "keyword_spotting.npz.xz", ASSETS / "ds_cnn.safetensors"
    source = read_archive(folder / "speech_commands_mfcc.npz.xz")
    write_clips(source, clips)
    check_clips(source, clips)
    write_weights(folder / "mlperf_tiny_weights.npz.xz", weights)

    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in (clips, weights)]
    (ASSETS / "SHA256SUMS").write_text("".join(sums))
    for path in (clips, weights):
        print(f"{path.stat().st_size:>9,} bytes  {path.relative_to(REPOSITORY)}")
    total = sum(path.stat().st_size for path in ASSETS.iterdir())
    if total > SIZE_LIMIT:
        sys.exit(f"{ASSETS}: {total:,} bytes, limit {SIZE_LIMIT:,}")


if __name__ == "__main__":
    main()
