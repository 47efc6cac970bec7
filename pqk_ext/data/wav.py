"""Sound files: 16-bit mono PCM, read with the standard library."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pqk_ext.data.features import SAMPLE_RATE
from pqk_ext.errors import DataError


def read_wav(path: Path) -> npt.NDArray[np.int16]:
    """Return the samples of a wav file: 16 kHz, mono, 16-bit PCM.

    Raises:
        DataError: The file is missing, is no wav file, is cut, is empty or has another rate, width or channel count.
    """
    try:
        with path.open("rb") as file:
            try:
                with wave.open(file) as sound:
                    form = (sound.getframerate(), sound.getnchannels(), sound.getsampwidth())
                    promised = sound.getnframes()
                    content = sound.readframes(promised)
            except (wave.Error, EOFError) as error:
                at = file.tell()
                raise DataError(path, "a PCM wav file", str(error) or "the end of the file", offset=at) from error
            end = file.tell()
    except OSError as error:
        raise DataError(path, "a readable wav file", error.strerror or str(error)) from error
    if form != (SAMPLE_RATE, 1, 2):
        got = f"{form[0]} Hz, {form[1]} channel(s), {8 * form[2]}-bit"
        raise DataError(path, f"{SAMPLE_RATE} Hz, 1 channel, 16-bit", got, offset=22)  # where the format chunk says so
    if len(content) < 2 * promised:
        raise DataError(path, f"{promised} samples", f"{len(content) // 2}: the file is cut", offset=end)
    if promised == 0:
        raise DataError(path, "at least one sample", "none", offset=end)
    return np.frombuffer(content, "<i2").astype(np.int16)
