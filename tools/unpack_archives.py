"""Turn archives of the data folder into the files that `pqk_ext.data` reads.

    python tools/unpack_archives.py DATA_FOLDER OUT [cifar10] [cifar10-test] [speech]

* `cifar10`: OUT/cifar-10-batches-bin/data_batch_1.bin .. data_batch_5.bin and test_batch.bin, for `data.cifar10(OUT)`;
* `cifar10-test`: the test batch alone;
* `speech`: OUT/speech_commands/<word>/*.wav, one fold of the 12-class test set, for
  `data.speech_commands(OUT + "/speech_commands", "all")`.
"""

from __future__ import annotations

import argparse
import io
import lzma
import wave
from pathlib import Path

import numpy as np


def read_archive(path: Path) -> dict[str, np.ndarray]:
    with lzma.open(path) as file:
        return dict(np.load(io.BytesIO(file.read()), allow_pickle=False))


def unpack_cifar10(folder: Path, out: Path, batches: dict[str, str]) -> None:
    target = out / "cifar-10-batches-bin"
    target.mkdir(parents=True, exist_ok=True)
    for source, name in batches.items():
        archive = read_archive(folder / f"{source}.npz.xz")
        # Stored as residuals of G, R - G and B - G along x, then y, modulo 256.
        green, red, blue = archive["r"].cumsum(2, dtype=np.uint8).cumsum(3, dtype=np.uint8)
        pixels = np.stack([red + green, green, blue + green], 1).reshape(len(green), -1)
        (target / name).write_bytes(np.concatenate([archive["y"].astype(np.uint8)[:, None], pixels], 1).tobytes())
        print(target / name)


def unpack_speech(folder: Path, out: Path) -> None:
    archive = read_archive(folder / "speech_commands_v2test_fold0.npz.xz")
    # Stored as zigzag-coded differences of int16 samples, low and high bytes apart.
    coded = archive["lo"] | (archive["hi"].astype(np.uint16) << 8)
    differences = (coded >> 1).astype(np.int16) ^ -(coded & 1).astype(np.int16)
    for samples, name in zip(differences.cumsum(-1, dtype="<i2"), archive["path"], strict=True):
        path = out / "speech_commands" / name.decode()
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16_000, len(samples), "NONE", ""))
            file.writeframes(samples.tobytes())
    print(out / "speech_commands")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("what", nargs="+", choices=["cifar10", "cifar10-test", "speech"])
    arguments = parser.parse_args()
    train = {f"cifar10_train{i}": f"data_batch_{i}.bin" for i in range(1, 6)}
    test = {"cifar10_test": "test_batch.bin"}
    for what in arguments.what:
        if what == "speech":
            unpack_speech(arguments.data_folder, arguments.out)
        else:
            unpack_cifar10(arguments.data_folder, arguments.out, (train if what == "cifar10" else {}) | test)


if __name__ == "__main__":
    main()
