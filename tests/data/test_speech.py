"""Speech Commands folders and wav files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pqk_ext import data
from pqk_ext.data import features
from pqk_ext.data.speech import hashed_split
from pqk_ext.data.wav import read_wav
from pqk_ext.errors import DataError

WriteWav = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, write_wav: WriteWav) -> Path:
    """Six speakers say four words; two files of noise."""
    generator = np.random.default_rng(0)
    for word in ("yes", "no", "bed", "cat"):
        for speaker in range(6):
            samples = generator.integers(-9000, 9000, 12_000 + 2_000 * speaker).astype(np.int16)
            write_wav(tmp_path / word / f"{speaker:08x}_nohash_0.wav", samples)
    for name in ("hum", "hiss"):
        write_wav(tmp_path / "_background_noise_" / f"{name}.wav", generator.integers(-99, 99, 40_000).astype(np.int16))
    (tmp_path / "validation_list.txt").write_text("yes/00000001_nohash_0.wav\nno/00000001_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("yes/00000002_nohash_0.wav\nno/00000002_nohash_0.wav\n")
    return tmp_path


WORDS = ("yes", "no", "_silence_", "_unknown_")


def test_splits_labels_and_values(folder: Path) -> None:
    train = data.speech_commands(folder, "train", keywords=WORDS, unknown=0.25, silence=0.5)
    x, y = train.tensors
    assert x.shape == (14, 1, 49, 10)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert y.bincount().tolist() == [4, 4, 4, 2]

    # The first clip of "yes", 12,000 samples filled up with zeros.
    samples = np.zeros((1, 16_000), np.int16)
    samples[0, :12_000] = read_wav(folder / "yes" / "00000000_nohash_0.wav")
    assert torch.equal(x[0, 0], torch.from_numpy(features.mfcc_mlperf_tiny(samples))[0])

    validation = data.speech_commands(folder, "validation", keywords=WORDS, silence=0)
    assert validation.tensors[1].tolist() == [0, 1]
    everything = data.speech_commands(folder, "all", keywords=WORDS, unknown=10, silence=0)
    assert everything.tensors[1].bincount(minlength=4).tolist() == [6, 6, 0, 12]


def test_choices_depend_on_the_seed_alone(folder: Path) -> None:
    first, again, other = (
        data.speech_commands(folder, "train", keywords=WORDS, unknown=0.5, silence=0.5, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first.tensors[0], again.tensors[0])
    assert not torch.equal(first.tensors[0], other.tensors[0])


def test_front_ends(folder: Path) -> None:
    mel = data.speech_commands(folder, "test", keywords=("yes", "no"), features="log_mel")
    assert mel.tensors[0].shape == (2, 1, 101, 40)
    own = data.speech_commands(folder, "test", keywords=("no",), features=lambda w: w.reshape(len(w), 100, 160) / 2)
    assert own.tensors[0].shape == (1, 1, 100, 160)
    with pytest.raises(ValueError, match=r"features: expected an array \(1, frames, width\), got shape \(1, 16000\)"):
        data.speech_commands(folder, "test", keywords=("no",), features=lambda w: w)


def test_ready_made_silence_and_unknown_folders(folder: Path, write_wav: WriteWav) -> None:
    for name in ("_silence_", "_unknown_"):
        for number in range(3):
            write_wav(folder / name / f"{number}.wav", np.arange(16_000, dtype=np.int16))
    y = data.speech_commands(folder, "all", keywords=WORDS).tensors[1]
    assert y.bincount().tolist() == [6, 6, 3, 3]


def test_hash_rule_agrees_with_the_official_lists() -> None:
    # All spoken clips of the embedded set are in the official testing_list.txt. Those of unknown words have the word
    # before the speaker, and ".wav" twice.
    paths = data.keyword_spotting_sources("all")[1]
    paths = [re.sub("_unknown_/[a-z]+_", "", path) for path in paths if "_nohash_" in path]
    assert len(paths) == 4482
    assert {hashed_split(path) for path in paths} == {"test"}


def test_hash_rule_without_lists(folder: Path) -> None:
    (folder / "validation_list.txt").unlink()
    (folder / "testing_list.txt").unlink()
    sizes = {
        split: len(data.speech_commands(folder, split, keywords=("yes",)))  # type: ignore[arg-type]
        for split in ("train", "all")
    }
    expected = sum(hashed_split(path.name) == "train" for path in (folder / "yes").iterdir())
    assert sizes == {"train": expected, "all": 6}


def test_one_list_alone_is_refused(folder: Path) -> None:
    (folder / "testing_list.txt").unlink()
    with pytest.raises(DataError, match=r"expected validation_list.txt and testing_list.txt, got validation_list.txt"):
        data.speech_commands(folder, "train", keywords=WORDS)


def test_listed_clip_that_is_missing(folder: Path) -> None:
    (folder / "no" / "00000002_nohash_0.wav").unlink()
    with pytest.raises(DataError, match=r"testing_list.txt, record 1, byte 26: .*'no/0.*', not there"):
        data.speech_commands(folder, "train", keywords=WORDS)


def test_missing_folders(folder: Path) -> None:
    with pytest.raises(DataError, match="nowhere: expected a folder, got nothing"):
        data.speech_commands(folder / "nowhere")
    with pytest.raises(DataError, match=r"down: expected a folder with wav files, got no folder"):
        data.speech_commands(folder)
    for path in (folder / "_background_noise_").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"_background_noise_: expected wav files of noise .*silence=0"):
        data.speech_commands(folder, keywords=WORDS)


def test_split_without_clips(folder: Path) -> None:
    (folder / "validation_list.txt").write_text("")
    with pytest.raises(DataError, match="expected clips of the keywords in split 'validation', got none"):
        data.speech_commands(folder, "validation", keywords=WORDS)


def test_bad_arguments(folder: Path) -> None:
    for arguments, message in (
        ({"split": "dev"}, "split: expected"),
        ({"features": "mfcc"}, "features: expected one of mlperf_tiny"),
        ({"silence": -1}, "silence: expected at least 0"),
        ({"keywords": ("yes", "yes")}, "keywords: expected different words"),
        ({"keywords": ("_silence_",)}, "keywords: expected different words, at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            data.speech_commands(folder, **arguments)  # type: ignore[arg-type]


def test_wav_round_trip(tmp_path: Path, write_wav: WriteWav) -> None:
    samples = np.array([0, 1, -1, 32767, -32768], np.int16)
    assert np.array_equal(read_wav(write_wav(tmp_path / "a.wav", samples)), samples)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"rate": 8000}, "expected 16000 Hz, 1 channel, 16-bit, got 8000 Hz, 1 channel"),
        ({"channels": 2}, "got 16000 Hz, 2 channel"),
        ({"width": 1}, "got 16000 Hz, 1 channel.*8-bit"),
    ],
)
def test_wav_of_another_form(tmp_path: Path, write_wav: WriteWav, form: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_wav(write_wav(tmp_path / "a.wav", np.zeros(100, np.int16), **form))
    assert caught.value.offset == 22


def test_damaged_wav(tmp_path: Path, write_wav: WriteWav) -> None:
    whole = write_wav(tmp_path / "whole.wav", np.ones(1000, np.int16)).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut.wav").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.wav, byte \d+: expected") as caught:
            read_wav(tmp_path / "cut.wav")
        assert 0 <= caught.value.offset <= length
    (tmp_path / "cut.wav").write_bytes(whole[:1000])
    with pytest.raises(DataError, match="expected 1000 samples, got 478: the file is cut"):
        read_wav(tmp_path / "cut.wav")

    (tmp_path / "text.wav").write_text("this is no sound, whatever its name says, only text")
    with pytest.raises(DataError, match=r"text.wav, byte 8: expected a PCM wav file, got file does not start"):
        read_wav(tmp_path / "text.wav")
    with pytest.raises(DataError, match="expected at least one sample"):
        read_wav(write_wav(tmp_path / "none.wav", np.zeros(0, np.int16)))
    with pytest.raises(DataError, match="No such file"):
        read_wav(tmp_path / "absent.wav")
