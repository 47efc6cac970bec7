"""CIFAR folders, whole and damaged, and the augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from pqk_ext import data
from pqk_ext.errors import DataError


@pytest.fixture(scope="module")
def records10() -> np.ndarray:
    """10,000 random records, 1,000 of each class."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (10_000, 3072), np.uint8)
    labels = generator.permutation(np.repeat(np.arange(10, dtype=np.uint8), 1000))
    return np.concatenate([labels[:, None], pixels], 1)


@pytest.fixture(scope="module")
def records100(records10: np.ndarray) -> np.ndarray:
    """10,000 random records, 100 of each class, class c under superclass c // 5."""
    fine = np.random.default_rng(1).permutation(np.repeat(np.arange(100, dtype=np.uint8), 100))
    return np.concatenate([fine[:, None] // 5, fine[:, None], records10[:, 1:]], 1)


def test_cifar10_test_set(tmp_path: Path, records10: np.ndarray) -> None:
    (tmp_path / "cifar-10-batches-bin").mkdir()
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(records10.tobytes())
    raw = data.cifar10(tmp_path, train=False, mean=(0, 0, 0), std=(1 / 255,) * 3)
    assert len(raw) == 10_000
    x, y = raw[7]
    assert (x.shape, x.dtype, y.dtype) == ((3, 32, 32), torch.float32, torch.int64)
    # A record is the label, then the red, the green and the blue plane, row by row.
    assert y == records10[7, 0]
    assert x[1, 2, 3] == records10[7, 1 + 1024 + 2 * 32 + 3]

    scaled = data.cifar10(tmp_path / "cifar-10-batches-bin", train=False)
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    expected = (raw[-1][0] / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(scaled[-1][0], expected)
    with pytest.raises(IndexError):
        raw[10_000]


def test_cifar10_training_set(tmp_path: Path, records10: np.ndarray) -> None:
    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(np.roll(records10, number, 0).tobytes())
    dataset = data.cifar10(tmp_path)
    assert len(dataset) == 50_000
    assert dataset[20_003][1] == records10[0, 0]
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3.bin: expected a readable file, got No such file"):
        data.cifar10(tmp_path)


def test_cifar100(tmp_path: Path, records100: np.ndarray) -> None:
    (tmp_path / "test.bin").write_bytes(records100.tobytes())
    dataset = data.cifar100(tmp_path, train=False)
    assert dataset.labels.tolist() == records100[:, 1].tolist()
    assert dataset.images[5, 2, 31, 31] == records100[5, -1]


@pytest.mark.parametrize("length", [0, 1, 3073 * 4217 + 5, 30_730_001])
def test_wrong_length_names_record_and_byte(tmp_path: Path, records10: np.ndarray, length: int) -> None:
    (tmp_path / "test_batch.bin").write_bytes((records10.tobytes() + b"\0" * 9)[:length])
    with pytest.raises(
        DataError, match=f"expected 10000 records of 3073 bytes .30730000., got {length} bytes"
    ) as caught:
        data.cifar10(tmp_path, train=False)
    assert caught.value.record == min(length // 3073, 10_000)
    assert caught.value.offset == 3073 * caught.value.record
    assert caught.value.path.endswith("test_batch.bin")


def test_wrong_labels_name_record_and_byte(tmp_path: Path, records10: np.ndarray, records100: np.ndarray) -> None:
    bad = records10.copy()
    bad[123, 0] = 10
    (tmp_path / "test_batch.bin").write_bytes(bad.tobytes())
    with pytest.raises(DataError, match="record 123, byte 377979: expected a label below 10, got 10"):
        data.cifar10(tmp_path, train=False)
    bad[123, 0] = (records10[123, 0] + 1) % 10
    (tmp_path / "test_batch.bin").write_bytes(bad.tobytes())
    with pytest.raises(DataError, match=r"test_batch.bin: expected 1000 images of class \d, got (999|1001)"):
        data.cifar10(tmp_path, train=False)

    bad = records100.copy()
    bad[50, 1] = 100
    (tmp_path / "test.bin").write_bytes(bad.tobytes())
    with pytest.raises(DataError, match=f"record 50, byte {50 * 3074 + 1}: expected a label below 100, got 100"):
        data.cifar100(tmp_path, train=False)
    bad = records100.copy()
    bad[60, 0] = (bad[60, 0] + 1) % 20
    (tmp_path / "test.bin").write_bytes(bad.tobytes())
    with pytest.raises(DataError, match=rf"record 60, byte {60 * 3074}: expected superclass \d+ with class \d+"):
        data.cifar100(tmp_path, train=False)


@pytest.mark.parametrize(
    ("load", "folder", "name"),
    [(data.cifar10, "cifar-10-batches-py", "data_batch_1"), (data.cifar100, "cifar-100-python", "train")],
)
def test_pickles_are_refused_unread(tmp_path: Path, load, folder: str, name: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / folder).mkdir()
    # Would raise RuntimeError if it were unpickled.
    (tmp_path / folder / name).write_bytes(b"cbuiltins\nexec\n(Vraise RuntimeError\ntR.")
    for root in (tmp_path, tmp_path / folder):
        with pytest.raises(DataError, match=r"expected the binary version .*pickles; unpickling runs any code"):
            load(root)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: expected an unpacked folder, got nothing of that name"):
        data.cifar10(tmp_path / "nowhere")
    (tmp_path / "cifar.tar.gz").touch()
    with pytest.raises(DataError, match="expected an unpacked folder, got a file"):
        data.cifar10(tmp_path / "cifar.tar.gz")
    with pytest.raises(DataError, match=r"train.bin: expected a file, got none, nor cifar-100-binary/train.bin"):
        data.cifar100(tmp_path)


def test_bad_arguments(tmp_path: Path) -> None:
    images, labels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="images, labels: expected uint8"):
        data.ImageDataset(images.float(), labels, mean=(0,) * 3, std=(1,) * 3)
    with pytest.raises(ValueError, match="images, labels: expected uint8"):
        data.ImageDataset(images, labels[:1], mean=(0,) * 3, std=(1,) * 3)
    with pytest.raises(ValueError, match="mean, std: expected 3 values each, std above 0"):
        data.ImageDataset(images, labels, mean=(0,) * 3, std=(1, 0, 1))
    with pytest.raises(ValueError, match=r"images: expected \(3, C, H, W\), got \(2, 3, 4, 4\)"):
        data.crop_and_flip(images, [1, 2, 3], seed=0, epoch=0)
    with pytest.raises(ValueError, match="pad: expected at least 0, got -1"):
        data.crop_and_flip(images, [1, 2], seed=0, epoch=0, pad=-1)


def candidates(image: torch.Tensor, pad: int) -> list[torch.Tensor]:
    padded = F.pad(image, (pad,) * 4)
    height, width = image.shape[1:]
    crops = [padded[:, y : y + height, x : x + width] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
    return crops + [crop.flip(2) for crop in crops]


def test_every_crop_and_flip_occurs_and_nothing_else() -> None:
    image = torch.arange(1, 1 + 2 * 5 * 6, dtype=torch.uint8).reshape(2, 5, 6)
    known = candidates(image, 2)
    count = 10_000
    changed = data.crop_and_flip(image.expand(count, -1, -1, -1), range(count), seed=4, epoch=1, pad=2)
    hits = [int((changed == crop).flatten(1).all(1).sum()) for crop in known]
    assert sum(hits) == count
    # 50 equally likely outcomes, 200 each; five standard deviations.
    assert min(hits) > 130
    assert max(hits) < 270


def test_change_depends_on_seed_epoch_and_index_only() -> None:
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    indices = list(range(1000, 1064))
    changed = data.crop_and_flip(images, indices, seed=7, epoch=3)
    assert changed.shape == images.shape
    assert changed.dtype == images.dtype
    one = data.crop_and_flip(images[9:10], [1009], seed=7, epoch=3)
    assert torch.equal(one[0], changed[9])
    assert not torch.equal(data.crop_and_flip(images, indices, seed=7, epoch=4), changed)
    assert not torch.equal(data.crop_and_flip(images, indices, seed=8, epoch=3), changed)
    assert torch.equal(data.crop_and_flip(images.flip(0), indices[::-1], seed=7, epoch=3), changed.flip(0))
    assert torch.equal(data.crop_and_flip(images.float(), indices, seed=7, epoch=3), changed.float())


def test_data_loader_order_and_workers_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=generator)
    dataset = data.ImageDataset(images, torch.arange(40), mean=(0.5,) * 3, std=(0.2,) * 3, augment_seed=5)
    dataset.set_epoch(2)
    expected = {int(y): x for x, y in (dataset[i] for i in range(40))}
    for workers in (0, 2):
        for x, y in DataLoader(dataset, batch_size=7, shuffle=True, num_workers=workers):
            assert x.shape == (len(y), 3, 8, 8)
            for image, label in zip(x, y, strict=True):
                assert torch.equal(image, expected[int(label)])
    dataset.set_epoch(3)
    assert any(not torch.equal(dataset[i][0], expected[i]) for i in range(40))
