"""The embedded keyword-spotting set as a torch dataset."""

from __future__ import annotations

import torch
from torch.utils.data import TensorDataset

from pqk_ext.data.embedded import Split, keyword_spotting_arrays


def keyword_spotting(split: Split = "train") -> TensorDataset:
    """Return the embedded keyword-spotting set: 12 labels, 4,890 clips of one second, 239 speakers.

    The clips are the official 12-class *test* set of Speech Commands v0.02 (Pete Warden, Google, CC BY 4.0), turned
    into MLPerf Tiny's features: 49 frames (30 ms window, 20 ms apart) of 10 mel-frequency cepstral coefficients. No
    speaker is in two splits. As it is the official test set, a model trained elsewhere on Speech Commands may be
    scored on `"all"`; a model that is trained or tuned here may not, and its accuracy on `"test"` is not the official
    one (980 clips: one standard error is about 1 point).

    Clips of each class:

    | split      | down | go  | left | no  | off | on  | right | stop | up  | yes | _silence_ | _unknown_ | sum   |
    |------------|------|-----|------|-----|-----|-----|-------|------|-----|-----|-----------|-----------|-------|
    | train      | 244  | 242 | 248  | 243 | 239 | 237 | 239   | 247  | 255 | 251 | 246       | 246       | 2,937 |
    | validation | 80   | 80  | 82   | 82  | 81  | 79  | 78    | 81   | 84  | 84  | 81        | 81        | 973   |
    | test       | 82   | 80  | 82   | 80  | 82  | 80  | 79    | 83   | 86  | 84  | 81        | 81        | 980   |
    | all        | 406  | 402 | 412  | 405 | 402 | 396 | 396   | 411  | 425 | 419 | 408       | 408       | 4,890 |

    Args:
        split: `"train"` (folds 0-2), `"validation"` (fold 3), `"test"` (fold 4) or `"all"`.

    Returns:
        Dataset of `(x, y)`: `x` float32 (1, 49, 10), `y` int64 index into `pqk_ext.data.KEYWORDS`.

    Raises:
        ValueError: Unknown split.
        DataError: The packaged file is missing or damaged.
    """
    x, y = keyword_spotting_arrays(split)
    return TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
