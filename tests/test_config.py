"""PQKConfig: ranges, messages, schedule, and a YAML reader that names line and column."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqk_ext.config import PQKConfig

BAD_VALUES = [
    ("sparsity", -0.1),
    ("sparsity", 1.0),
    ("sparsity", 1.5),
    ("sparsity", math.nan),
    ("sparsity", "0.9"),
    ("sparsity", True),
    ("weight_bits", 0),
    ("weight_bits", 1),
    ("weight_bits", 9),
    ("weight_bits", "8"),
    ("weight_bits", 8.0),
    ("act_bits", None),
    ("first_layer_bits", 16),
    ("last_layer_bits", True),
    ("total_steps", 0),
    ("total_steps", 10.0),
    ("phase1_fraction", 0.0),
    ("phase1_fraction", 1.1),
    ("warmup_fraction", 1.0),
    ("ramp_end", 0.0),
    ("mask_update_interval", 0),
    ("ranking", "globally"),
    ("granularity", 3),
    ("granularity", "1x8"),
    ("min_keep_per_channel", -1),
    ("min_keep_fraction", 1.5),
    ("prune_linear", 1),
    ("temperature", 0.0),
    ("temperature", math.inf),
    ("kd_weight", -1),
    ("teacher_weights", ["float"]),
    ("kl_direction", "both"),
    ("step_size_lr_factor", math.nan),
    ("teacher", "yes"),
    ("size_penalty", -0.1),
    ("size_penalty", math.inf),
    ("size_penalty", "1"),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_bad_value_is_refused_naming_key_range_and_value(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected (a|an|one|true) .*, got") as caught:
        PQKConfig(**{name: value})  # type: ignore[arg-type]
    assert str(value) in str(caught.value).replace("'", "") or isinstance(value, list)


def test_every_field_is_checked() -> None:
    for field in dataclasses.fields(PQKConfig):
        with pytest.raises(ValueError, match=f"^{field.name}: expected"):
            PQKConfig(**{field.name: object()})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"warmup_fraction": 0.8, "ramp_end": 0.75}, "ramp_end"),
        ({"total_steps": 1, "phase1_fraction": 0.1}, "phase1_fraction"),
        ({"sparsity": 0.995}, "min_keep_fraction"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(values: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: expected"):
        PQKConfig.from_dict(values)


def test_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match="unknown key 'sparsty'; did you mean 'sparsity'"):
        PQKConfig.from_dict({"sparsty": 0.5})
    with pytest.raises(ValueError, match="unknown key 'qqq'; known keys: sparsity, "):
        PQKConfig.from_dict({"qqq": 0.5})


def test_config_is_frozen_and_hashable() -> None:
    config = PQKConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.sparsity = 0.5  # type: ignore[misc]
    assert hash(config) == hash(PQKConfig())


def test_default_schedule() -> None:
    config = PQKConfig()
    steps = (config.phase1_steps, config.warmup_steps, config.ramp_start_step, config.ramp_end_step)
    assert (*steps, config.phase2_steps, config.kd_warmup_steps) == (1000, 50, 50, 750, 1000, 0)


@given(
    total_steps=st.integers(2, 10_000),
    phase1_fraction=st.floats(0.5, 1.0),
    warmup_fraction=st.floats(0.0, 0.7),
    ramp_end=st.floats(0.71, 1.0),
    kd_warmup_fraction=st.floats(0.0, 1.0),
)
def test_schedule_is_in_order_for_every_length(**values: float) -> None:
    config = PQKConfig.from_dict(values)
    assert 0 <= config.ramp_start_step < config.ramp_end_step <= config.phase1_steps <= config.total_steps
    assert 0 <= config.kd_warmup_steps <= config.phase2_steps
    assert config.phase1_steps + config.phase2_steps == config.total_steps


def test_dict_and_yaml_give_the_same_config_back(tmp_path: Path) -> None:
    config = PQKConfig(sparsity=0.5, weight_bits=4, ranking="per_layer", teacher=False, temperature=4)
    assert PQKConfig.from_dict(config.to_dict()) == config
    text = config.to_yaml(tmp_path / "config.yaml")
    assert (tmp_path / "config.yaml").read_text() == text
    assert PQKConfig.load_yaml(tmp_path / "config.yaml") == config


def test_whole_numbers_are_floats_where_the_field_is_one() -> None:
    assert PQKConfig(temperature=4).to_yaml() == PQKConfig(temperature=4.0).to_yaml()


def test_a_granularity_that_looks_like_a_number_is_text(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("granularity: 1x4\n")
    assert PQKConfig.load_yaml(tmp_path / "c.yaml") == PQKConfig(granularity="1x4")
    assert "granularity: 1x4\n" in PQKConfig(granularity="1x4").to_yaml()
    pattern = PQKConfig(granularity="2:4", sparsity=0.5)
    for text in ("granularity: 2:4\nsparsity: 0.5\n", pattern.to_yaml()):  # in YAML 1.1 124, by sixties
        (tmp_path / "c.yaml").write_text(text)
        assert PQKConfig.load_yaml(tmp_path / "c.yaml") == pattern


def test_two_of_four_are_half() -> None:
    assert PQKConfig(granularity="2:4", sparsity=0.5, layers={"a": {"sparsity": 0.0}}).sparsity == 0.5
    for wrong in ({"sparsity": 0.9}, {"sparsity": 0.5, "layers": {"a": {"sparsity": 0.75}}}):
        with pytest.raises(ValueError, match=r"sparsity: expected 0\.5 with granularity 2:4, .* got 0\.[79]"):
            PQKConfig(granularity="2:4", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "value"), [("1e-2", 0.01), ("1E2", 100.0), ("0.5", 0.5), ("2", 2.0)])
def test_yaml_numbers(tmp_path: Path, text: str, value: float) -> None:
    (tmp_path / "c.yaml").write_text(f"step_size_lr_factor: {text}\n")
    assert PQKConfig.load_yaml(tmp_path / "c.yaml").step_size_lr_factor == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1:1: expected a mapping of settings, got an empty file"),
        ("# nothing\n", "1:1: expected a mapping of settings, got an empty file"),
        ("- 1\n", "1:1: expected a mapping"),
        ("sparsity", "1:1: expected a mapping"),
        ("sparsity: 0.5\nsparsity: 0.6\n", "2:1: key 'sparsity' is given twice"),
        ("sparsity: 0.5\n\nsparsty: 0.6\n", "3:1: unknown key 'sparsty'; did you mean 'sparsity'"),
        ("sparsity: 0.5\nact_bits: 9\n", "2:1: act_bits: expected an integer from 2 to 8, got 9"),
        ("act_bits: '8'\n", "1:1: act_bits: expected an integer from 2 to 8, got '8'"),
        ("sparsity: .nan\n", "1:1: sparsity: expected"),
        ("sparsity: [0.5]\n", "1:11: expected a plain value"),
        ("sparsity: &a {b: *a}\n", "1:11: expected a plain value"),
        ("? [1]\n: 2\n", "1:3: expected a plain value"),
        ("1: 2\n", "1:1: unknown key 1"),
        ("sparsity: 0.5\n---\nsparsity: 0.5\n", "2:1: expected one document"),
        ("sparsity: 0.5\n\tact_bits: 8\n", "2:1: "),
        ("sparsity: 'x\n", "2:1: "),
        ("sparsity: !!python/object/apply:os.system [ls]\n", "1:11: expected a plain value"),
        ("sparsity: !!python/name:os.system ''\n", "1:11: expected a plain value"),
        ("sparsity: !!float x\n", "1:11: expected a plain value"),
        ("sparsity: 2001-99-99\n", "1:11: month must be"),
        ("a: " + "[" * 100_000, "1:1: unknown key 'a'"),
        ("[" * 100_000, "1:1: expected a mapping"),
    ],
)
def test_bad_yaml_is_refused_with_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"c\.yaml:") as caught:
        PQKConfig.load_yaml(path)
    assert str(caught.value).startswith(f"{path}:{message}")


@pytest.mark.parametrize("data", [b"sparsity: \xff", b"sparsity: \x00", b"\xff\xfe\x00"])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "c.yaml").write_bytes(data)
    with pytest.raises(ValueError, match=r"c\.yaml"):
        PQKConfig.load_yaml(tmp_path / "c.yaml")


def test_huge_yaml_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "c.yaml").open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(ValueError, match="at most 1048576 bytes"):
        PQKConfig.load_yaml(tmp_path / "c.yaml")


def test_missing_yaml_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        PQKConfig.load_yaml(tmp_path / "absent.yaml")


@pytest.mark.parametrize("seed", range(100))
def test_random_damage_gives_a_config_or_a_value_error(tmp_path: Path, seed: int) -> None:
    source = random.Random(seed)
    text = bytearray(PQKConfig().to_yaml().encode())
    for _ in range(3):
        text[source.randrange(len(text))] = source.randrange(256)
    (tmp_path / "c.yaml").write_bytes(text)
    with contextlib.suppress(ValueError):
        assert isinstance(PQKConfig.load_yaml(tmp_path / "c.yaml"), PQKConfig)


def test_config_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import pqk_ext.config; assert 'pqk_ext._core' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
