"""Speech Commands (Warden, arXiv:1804.03209) from a folder of wav files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import TensorDataset

from pqk_ext.data.embedded import KEYWORDS, Split
from pqk_ext.data.features import FRONT_ENDS, SAMPLE_RATE, Floats, Waves
from pqk_ext.data.wav import read_wav
from pqk_ext.errors import DataError

SILENCE, UNKNOWN, NOISE = "_silence_", "_unknown_", "_background_noise_"
_LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
_BATCH = 256  # clips turned into features at a time


def speech_commands(
    root: str | Path,
    split: Split = "train",
    *,
    keywords: Sequence[str] = KEYWORDS,
    features: Literal["mlperf_tiny", "hello_edge", "log_mel"] | Callable[[Waves], Floats] = "mlperf_tiny",
    unknown: float = 0.1,
    silence: float = 0.1,
    seed: int = 0,
) -> TensorDataset:
    """Read Speech Commands from a folder that has one folder of wav files (16 kHz, mono, 16-bit) for each word.

    A clip belongs to the split that `validation_list.txt` and `testing_list.txt` say; without these files, to the one
    that the hash of its speaker gives (the rule in the data set's README, by which the lists were made). Clips of less
    than a second are filled up with zeros, longer ones are cut.

    `_unknown_` is a random choice among the clips of all other words, `_silence_` is random seconds of the files in
    `_background_noise_`, both drawn with `seed`. Where the folder has a folder `_unknown_` or `_silence_` (the official
    test set does), all its clips are taken instead.

    Args:
        root: The folder.
        split: `"train"`, `"validation"`, `"test"` or `"all"`.
        keywords: Labels in the order of their indices; words, and perhaps `"_silence_"` and `"_unknown_"`.
        features: A front end of `pqk_ext.data.features` by name, or a function from int16 (N, 16000) to float32
            (N, frames, width).
        unknown: Number of `_unknown_` clips as a share of the keywords' clips.
        silence: Number of `_silence_` clips as a share of the keywords' clips.
        seed: Seed of the two random choices.

    Returns:
        Dataset of `(x, y)`: `x` float32 (1, frames, width), `y` int64 index into `keywords`. All in memory.

    Raises:
        ValueError: An argument is out of its range.
        DataError: The folder, a keyword's folder, a listed clip or the noise is missing, or a wav file is cut or of
            another form. The message names the file and the byte, for a list the line.
    """
    root = Path(root)
    _check_arguments(split, keywords, features, unknown, silence)
    front_end = FRONT_ENDS[features] if isinstance(features, str) else features
    generator = np.random.default_rng([seed, ("train", "validation", "test", "all").index(split)])

    clips = _clips_of_split(root, split, keywords)
    found = [(path, keywords.index(word)) for word in keywords for path in clips.get(word, ())]
    count = sum(label < len(keywords) and keywords[label] not in (SILENCE, UNKNOWN) for _, label in found)
    if UNKNOWN in keywords and UNKNOWN not in clips:
        others = [path for word, paths in sorted(clips.items()) if word not in keywords for path in paths]
        chosen = generator.permutation(len(others))[: round(unknown * count)]
        found += [(others[i], keywords.index(UNKNOWN)) for i in sorted(chosen)]
    if count == 0:
        raise DataError(root, f"clips of the keywords in split {split!r}", "none")
    x = [_features(front_end, [path for path, _ in found])]
    y = [label for _, label in found]
    if SILENCE in keywords and SILENCE not in clips and silence > 0:
        noise = _noise(root, round(silence * count), generator)
        x.append(_checked(front_end, noise))
        y += [keywords.index(SILENCE)] * len(noise)
    return TensorDataset(torch.from_numpy(np.concatenate(x)[:, None]), torch.tensor(y, dtype=torch.int64))


def _check_arguments(split: str, keywords: Sequence[str], features: object, unknown: float, silence: float) -> None:
    if split not in ("train", "validation", "test", "all"):
        raise ValueError(f"split: expected train, validation, test or all, got {split!r}")
    if isinstance(features, str) and features not in FRONT_ENDS:
        raise ValueError(f"features: expected one of {', '.join(FRONT_ENDS)}, got {features!r}")
    if unknown < 0 or silence < 0:
        raise ValueError(f"unknown, silence: expected at least 0, got {unknown} and {silence}")
    if len(set(keywords)) != len(keywords) or not set(keywords) - {SILENCE, UNKNOWN}:
        raise ValueError(f"keywords: expected different words, at least one, got {list(keywords)}")


def hashed_split(name: str) -> Literal["train", "validation", "test"]:
    """Return the split of the wav file `name` by the rule in the data set's README: 80 %, 10 % and 10 % of speakers."""
    largest = 2**27 - 1
    speaker = Path(name).name.partition("_nohash_")[0]
    digest = int(hashlib.sha1(speaker.encode(), usedforsecurity=False).hexdigest(), 16)
    percentage = digest % (largest + 1) * (100.0 / largest)
    return "validation" if percentage < 10 else "test" if percentage < 20 else "train"


def _clips_of_split(root: Path, split: Split, keywords: Sequence[str]) -> dict[str, list[Path]]:
    """Return the clips of `split` by the name of their folder, sorted."""
    if not root.is_dir():
        raise DataError(root, "a folder", "a file" if root.exists() else "nothing of that name")
    for word in keywords:
        if word not in (SILENCE, UNKNOWN) and not any((root / word).glob("*.wav")):
            raise DataError(root / word, "a folder with wav files", "none" if (root / word).is_dir() else "no folder")
    words = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and folder.name != NOISE)
    clips = {word: sorted((root / word).glob("*.wav")) for word in words}
    clips = {word: paths for word, paths in clips.items() if paths}
    if split == "all":
        return clips
    listed = {name: _listed(root / file) for name, file in _LISTS.items() if (root / file).is_file()}
    if len(listed) == 1:
        raise DataError(root, " and ".join(_LISTS.values()), f"{_LISTS[next(iter(listed))]} alone")

    def split_of(path: Path) -> str:
        if not listed:
            return hashed_split(path.name)
        name = f"{path.parent.name}/{path.name}"
        return next((split for split, names in listed.items() if name in names), "train")

    return {word: [path for path in paths if split_of(path) == split] for word, paths in clips.items()}


def _listed(path: Path) -> set[str]:
    """Return the names in a list file after checking that each is there."""
    names = set()
    offset = 0
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True)):
        name = line.decode("utf-8", "replace").strip()
        if name and not (path.parent / name).is_file():
            raise DataError(path, "the name of a wav file", f"{name!r}, not there", record=number, offset=offset)
        names.add(name)
        offset += len(line)
    return names


def _features(front_end: Callable[[Waves], Floats], paths: Sequence[Path]) -> Floats:
    batches = []
    for start in range(0, len(paths), _BATCH):
        chosen = paths[start : start + _BATCH]
        waves = np.zeros((len(chosen), SAMPLE_RATE), np.int16)
        for wave, path in zip(waves, chosen, strict=True):
            samples = read_wav(path)[:SAMPLE_RATE]
            wave[: len(samples)] = samples
        batches.append(_checked(front_end, waves))
    return np.concatenate(batches)


def _checked(front_end: Callable[[Waves], Floats], waves: npt.NDArray[np.int16]) -> Floats:
    result: npt.NDArray[Any] = np.asarray(front_end(waves))
    if result.ndim != 3 or len(result) != len(waves):
        raise ValueError(f"features: expected an array ({len(waves)}, frames, width), got shape {result.shape}")
    return result.astype(np.float32, copy=False)


def _noise(root: Path, count: int, generator: np.random.Generator) -> npt.NDArray[np.int16]:
    paths = sorted((root / NOISE).glob("*.wav"))
    if not paths:
        raise DataError(root / NOISE, "wav files of noise for the label _silence_ (or silence=0)", "none")
    sounds = [read_wav(path) for path in paths]
    for path, sound in zip(paths, sounds, strict=True):
        if len(sound) < SAMPLE_RATE:
            raise DataError(path, f"at least {SAMPLE_RATE} samples of noise", str(len(sound)))
    waves = np.empty((count, SAMPLE_RATE), np.int16)
    for wave in waves:
        sound = sounds[generator.integers(len(sounds))]
        start = generator.integers(len(sound) - SAMPLE_RATE + 1)
        wave[:] = sound[start : start + SAMPLE_RATE]
    return waves
