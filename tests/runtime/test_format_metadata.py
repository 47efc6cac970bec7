"""The metadata: the exact code and field for each way to break one of its rules, under a right digest."""

from __future__ import annotations

import pytest

from pqk_ext.runtime import format as pqk_format
from tests.runtime.files import ALL_OPS, REMOVED, SMALL, join, refused, set_metadata, split

BIG = 2**31
# nodes of SMALL: 0 quantize, 1 conv2d (8, 1, 3, 3) stride 2 padding 1, 2 flatten, 3 linear (3, 72) to float32.
METADATA_CASES: dict[str, tuple[list[str | int], object, str, str]] = {
    "major": (["version"], [2, 0], "E_VERSION", "version"),
    "version text": (["version"], "1.0", "E_VERSION", "version"),
    "version bool": (["version"], [True, False], "E_VERSION", "version"),
    "version none": (["version"], REMOVED, "E_VERSION", "version"),
    "feature": (["required_features"], ["ans"], "E_FEATURE", "required_features"),
    "features no list": (["required_features"], "ans", "E_HEADER", "required_features"),
    "unknown key": (["weights"], 1, "E_HEADER", "metadata"),
    "no nodes": (["nodes"], [], "E_LIMIT", "nodes"),
    "nodes number": (["nodes"], 3, "E_HEADER", "nodes"),
    "node number": (["nodes", 1], 3, "E_HEADER", "nodes[1].node"),
    "input text": (["input"], "x", "E_SHAPE", "input"),
    "input rank 2": (["input"], [6, 5], "E_FEATURE", "required_features"),
    "input rank 4": (["input"], [1, 1, 6, 5], "E_SHAPE", "input"),
    "input 0": (["input"], [1, 0, 5], "E_SHAPE", "input[1]"),
    "input overflow": (["input"], [2**20, 2**20, 2**20], "E_SHAPE_OVERFLOW", "input"),
    "other input": (["input"], [1, 6, 6], "E_GRAPH_SHAPE", "nodes[0].shape"),
    "op": (["nodes", 1, "op"], "eval", "E_ENUM", "nodes[1].op"),
    "op number": (["nodes", 1, "op"], 7, "E_ENUM", "nodes[1].op"),
    "op with fewer tensors": (["nodes", 1, "op"], "flatten", "E_HEADER", "nodes[1].node"),
    "name": (["nodes", 1, "name"], "a b", "E_NAME", "nodes[1].name"),
    "name number": (["nodes", 1, "name"], 4, "E_NAME", "nodes[1].name"),
    "name missing": (["nodes", 1, "name"], REMOVED, "E_HEADER", "nodes[1].node"),
    "output of codes": (["nodes", 3, "dtype"], REMOVED, "E_GRAPH_ATTR", "nodes[3].dtype"),
    "unknown attribute": (["nodes", 1, "stridee"], [1, 1], "E_HEADER", "nodes[1].node"),
    "later value": (["nodes", 1, "inputs"], [2], "E_GRAPH_REF", "nodes[1].inputs[0]"),
    "negative value": (["nodes", 1, "inputs"], [-1], "E_GRAPH_REF", "nodes[1].inputs[0]"),
    "value past all": (["nodes", 1, "inputs"], [99], "E_GRAPH_REF", "nodes[1].inputs[0]"),
    "value true": (["nodes", 1, "inputs"], [True], "E_GRAPH_REF", "nodes[1].inputs[0]"),
    "no inputs": (["nodes", 1, "inputs"], [], "E_GRAPH_REF", "nodes[1].inputs"),
    "three inputs": (["nodes", 1, "inputs"], [1, 1, 1], "E_GRAPH_REF", "nodes[1].inputs"),
    "inputs text": (["nodes", 1, "inputs"], "1", "E_GRAPH_REF", "nodes[1].inputs"),
    "float value into conv2d": (["nodes", 1, "inputs"], [0], "E_GRAPH_REF", "nodes[1].inputs[0]"),
    "stride 0": (["nodes", 1, "stride"], [0, 1], "E_GRAPH_ATTR", "nodes[1].stride"),
    "stride float": (["nodes", 1, "stride"], [1.0, 1], "E_GRAPH_ATTR", "nodes[1].stride"),
    "stride of three": (["nodes", 1, "stride"], [1, 1, 1], "E_GRAPH_ATTR", "nodes[1].stride"),
    "stride 2^31": (["nodes", 1, "stride"], [BIG, 1], "E_GRAPH_ATTR", "nodes[1].stride"),
    "dilation 0": (["nodes", 1, "dilation"], [1, 0], "E_GRAPH_ATTR", "nodes[1].dilation"),
    "groups 0": (["nodes", 1, "groups"], 0, "E_GRAPH_ATTR", "nodes[1].groups"),
    "groups not dividing": (["nodes", 1, "groups"], 3, "E_GRAPH_ATTR", "nodes[1].groups"),
    "padding negative": (["nodes", 1, "padding"], [0, -1, 0, 0], "E_GRAPH_ATTR", "nodes[1].padding"),
    "residual without input": (
        ["nodes", 1, "residual_multiplier"],
        0.5,
        "E_GRAPH_ATTR",
        "nodes[1].residual_multiplier",
    ),
    "quant_min of float": (["nodes", 3, "quant_min"], 0, "E_GRAPH_ATTR", "nodes[3].quant_min"),
    "kernel beyond input": (["nodes", 1, "dilation"], [9, 9], "E_GRAPH_SHAPE", "nodes[1].kernel"),
    "other padding": (["nodes", 1, "padding"], [3, 3, 3, 3], "E_GRAPH_SHAPE", "nodes[1].shape"),
    "other shape": (["nodes", 1, "shape"], [8, 3, 4], "E_GRAPH_SHAPE", "nodes[1].shape"),
    "shape -1": (["nodes", 1, "shape"], [8, -1, 3], "E_SHAPE", "nodes[1].shape[1]"),
    "shape float": (["nodes", 1, "shape"], [8, 3.0, 3], "E_SHAPE", "nodes[1].shape[1]"),
    "shape number": (["nodes", 1, "shape"], 8, "E_SHAPE", "nodes[1].shape"),
    "shape overflow": (["nodes", 1, "shape"], [2**20] * 3, "E_SHAPE_OVERFLOW", "nodes[1].shape"),
    "dtype": (["nodes", 1, "dtype"], "u16", "E_ENUM", "nodes[1].dtype"),
    "dtype of flatten": (["nodes", 2, "dtype"], "f32", "E_GRAPH_ATTR", "nodes[2].dtype"),
    "scale 0": (["nodes", 1, "scale"], 0.0, "E_QPARAM", "nodes[1].scale"),
    "scale negative": (["nodes", 1, "scale"], -1.0, "E_QPARAM", "nodes[1].scale"),
    "scale subnormal": (["nodes", 1, "scale"], 2.0**-127, "E_QPARAM", "nodes[1].scale"),
    "scale not float32": (["nodes", 1, "scale"], 0.1, "E_QPARAM", "nodes[1].scale"),
    "scale beyond float32": (["nodes", 1, "scale"], 1e300, "E_QPARAM", "nodes[1].scale"),
    "scale integer": (["nodes", 1, "scale"], 1, "E_QPARAM", "nodes[1].scale"),
    "scale null": (["nodes", 1, "scale"], None, "E_QPARAM", "nodes[1].scale"),
    "scale text": (["nodes", 1, "scale"], "1", "E_QPARAM", "nodes[1].scale"),
    "scale of float": (["nodes", 3, "scale"], 1.0, "E_QPARAM", "nodes[3].scale"),
    "scale changed by flatten": (["nodes", 2, "scale"], 1.0, "E_QPARAM", "nodes[2].scale"),
    "quantize without scale": (["nodes", 0, "scale"], REMOVED, "E_QPARAM", "nodes[0].zero_point"),
    "zero point 300": (["nodes", 1, "zero_point"], 300, "E_QPARAM", "nodes[1].zero_point"),
    "zero point negative": (["nodes", 1, "zero_point"], -1, "E_QPARAM", "nodes[1].zero_point"),
    "zero point float": (["nodes", 1, "zero_point"], 0.0, "E_QPARAM", "nodes[1].zero_point"),
    "zero point outside the range": (["nodes", 0, "quant_max"], 127, "E_QPARAM", "nodes[0].zero_point"),
    "quant range": (["nodes", 1, "quant_min"], 256, "E_QPARAM", "nodes[1].quant_min"),
    "codec": (["nodes", 1, "weight", "codec"], "zip", "E_ENUM", "nodes[1].weight.codec"),
    "codec number": (["nodes", 1, "weight", "codec"], 2, "E_ENUM", "nodes[1].weight.codec"),
    "another codec": (["nodes", 1, "weight", "codec"], "raw", "E_ENUM", "tensors['1.weight'].dtype"),
    "bits 1": (["nodes", 1, "weight", "bits"], 1, "E_QPARAM", "nodes[1].weight.bits"),
    "bits 9": (["nodes", 1, "weight", "bits"], 9, "E_QPARAM", "nodes[1].weight.bits"),
    "bits too few": (["nodes", 1, "weight", "bits"], 2, "E_VALUE_RANGE", "tensors['1.weight'][3]"),
    "weight shape": (["nodes", 1, "weight", "shape"], [8, 3, 1, 3], "E_GRAPH_SHAPE", "nodes[1].weight"),
    "weight rank": (["nodes", 1, "weight", "shape"], [8, 9], "E_GRAPH_SHAPE", "nodes[1].weight"),
    "weight rank 3": (["nodes", 1, "weight", "shape"], [8, 3, 3], "E_SHAPE", "nodes[1].weight.shape"),
    "weight 2^62 x 8": (["nodes", 1, "weight", "shape"], [2**62, 8], "E_SHAPE", "nodes[1].weight.shape[0]"),
    "weight 2^31 x 2^31": (
        ["nodes", 1, "weight", "shape"],
        [2**31 - 1] * 2,
        "E_SHAPE_OVERFLOW",
        "nodes[1].weight.shape",
    ),
    "weight number": (["nodes", 1, "weight"], 3, "E_HEADER", "nodes[1].weight"),
    "weight missing": (["nodes", 1, "weight"], REMOVED, "E_HEADER", "nodes[1].node"),
    "weight key": (["nodes", 1, "weight", "path"], "/etc/passwd", "E_HEADER", "nodes[1].weight"),
    "weight of fewer channels": (["nodes", 1, "weight", "shape"], [4, 1, 3, 3], "E_QPARAM", "nodes[1].multiplier"),
}


@pytest.mark.parametrize("name", METADATA_CASES)
def test_metadata(name: str) -> None:
    path, new, code, field = METADATA_CASES[name]
    error = refused(set_metadata(path, new))
    assert (error.code, error.field) == (code, field)


# nodes of ALL_OPS: see tests/golden/make_golden.py
ALL_OPS_CASES: dict[str, tuple[list[str | int], object, str, str]] = {
    "residual of another shape": (["nodes", 2, "inputs"], [2, 1], "E_GRAPH_SHAPE", "nodes[2].inputs[1]"),
    "residual multiplier missing": (
        ["nodes", 2, "residual_multiplier"],
        REMOVED,
        "E_GRAPH_ATTR",
        "nodes[2].residual_multiplier",
    ),
    "residual multiplier integer": (["nodes", 2, "residual_multiplier"], 1, "E_QPARAM", "nodes[2].residual_multiplier"),
    "residual multiplier huge": (["nodes", 2, "residual_multiplier"], 1e30, "E_QPARAM", "nodes[2].residual_multiplier"),
    "residual of a float": (["nodes", 2, "dtype"], "f32", "E_GRAPH_ATTR", "nodes[2].dtype"),
    "add of two shapes": (["nodes", 4, "inputs"], [1, 3], "E_GRAPH_SHAPE", "nodes[4].inputs[1]"),
    "add bias": (["nodes", 4, "bias"], 1e30, "E_QPARAM", "nodes[4].bias"),
    "concat of two sizes": (["nodes", 5, "inputs"], [4, 0], "E_GRAPH_REF", "nodes[5].inputs[1]"),
    "concat scale": (["nodes", 5, "scale"], 0.5, "E_QPARAM", "nodes[5].scale"),
    "affine of other channels": (["nodes", 6, "inputs"], [5], "E_QPARAM", "nodes[6].zero_point"),
    "pad of codes of many scales": (["nodes", 7, "inputs"], [6], "E_QPARAM", "nodes[7].inputs[0]"),
    "pad negative": (["nodes", 7, "before"], [0, -1, 0], "E_GRAPH_ATTR", "nodes[7].before"),
    "slice past the end": (["nodes", 8, "stop"], [9, 9, 8], "E_GRAPH_SHAPE", "nodes[8].stop"),
    "slice of nothing": (["nodes", 8, "start"], [8, 1, 0], "E_GRAPH_SHAPE", "nodes[8].stop"),
    "slice step 0": (["nodes", 8, "step"], [0, 1, 1], "E_GRAPH_ATTR", "nodes[8].step"),
    "max pool window in the padding": (["nodes", 9, "padding"], [3, 1, 0, 1], "E_GRAPH_ATTR", "nodes[9].padding"),
    "max pool kernel 0": (["nodes", 9, "kernel"], [0, 3], "E_GRAPH_ATTR", "nodes[9].kernel"),
    "mean window in the padding": (["nodes", 10, "padding"], [1, 1, 9, 1], "E_GRAPH_ATTR", "nodes[10].padding"),
    "mean count flag": (["nodes", 10, "count_include_pad"], 2, "E_GRAPH_ATTR", "nodes[10].count_include_pad"),
    "mean multiplier missing": (["nodes", 10, "multiplier"], REMOVED, "E_GRAPH_ATTR", "nodes[10].multiplier"),
    "mean output 0": (["nodes", 11, "output_size"], [0, 1], "E_GRAPH_ATTR", "nodes[11].output_size"),
    "linear of an image": (["nodes", 13, "inputs"], [12], "E_GRAPH_SHAPE", "nodes[13].inputs[0]"),
    "softmax of codes": (["nodes", 16, "inputs"], [15], "E_GRAPH_REF", "nodes[16].inputs[0]"),
    "dequantize to codes": (["nodes", 15, "dtype"], "u8", "E_GRAPH_ATTR", "nodes[15].dtype"),
    "1 TiB of activations": (["nodes", 7, "after"], [0, 2**20, 2**20], "E_GRAPH_SHAPE", "nodes[7].shape"),
}


@pytest.mark.parametrize("name", ALL_OPS_CASES)
def test_operator_rules(name: str) -> None:
    path, new, code, field = ALL_OPS_CASES[name]
    error = refused(set_metadata(path, new, ALL_OPS))
    assert (error.code, error.field) == (code, field)


def test_optional_keys_and_later_minor_versions_load() -> None:
    data = set_metadata(["version"], [1, 7])
    data = set_metadata(["ext.note"], {"any": ["thing", 1.5]}, data)
    assert len(pqk_format.loads(data).nodes) == 4


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"digest":"DIGEST","digest":"x"}', "E_DUPLICATE"),
        ('{"digest":"DIGEST"', "E_HEADER"),
        ('{"digest":"DIGEST"} x', "E_HEADER"),
        ('{"digest":"DIGESTff","input":[1],"nodes":[],"version":[1,0]}', "E_HEADER"),
        ('{"digest":"DIGEST","nodes":' + "[" * 100_000 + "]" * 100_000 + "}", "E_HEADER"),
        ('{"digest":"DIGEST","version":[1,NaN]}', "E_HEADER"),
        ('{"digest":"DIGEST","version":[1,1e999]}', "E_HEADER"),
    ],
)
def test_metadata_json(text: str, code: str) -> None:
    header, _, tensors = split(SMALL)
    error = refused(join(header, text.replace("DIGEST", "0" * 64), tensors))
    assert error.code == code
