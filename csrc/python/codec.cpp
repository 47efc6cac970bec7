#include "core/codec.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "core/thread_pool.h"
#include "python/gil.h"
#include "python/module.h"

namespace py = pybind11;

namespace pqk::python {
namespace {

// forcecast off: an array of another dtype or layout is a TypeError, never a silent copy.
using Int8Array = py::array_t<int8_t, py::array::c_style>;

WeightShape shape_of(const Int8Array& values, int64_t rows) {
  const WeightShape shape{values.size(), rows};
  if (rows < 0 || (rows == 0 ? shape.count : shape.count % rows) != 0) {
    throw py::value_error("rows must divide the number of values, " + std::to_string(shape.count) + ", got " +
                          std::to_string(rows));
  }
  return shape;
}

py::bytes encode(const std::string& codec_name, const Int8Array& values, int64_t rows) {
  const WeightCodec& codec = weight_codec(codec_name, "codec");
  const WeightShape shape = shape_of(values, rows);
  const int8_t* data = values.data();
  std::vector<uint8_t> payload;
  without_gil([&] { payload = codec.encode(data, shape); });
  return py::bytes(reinterpret_cast<const char*>(payload.data()), payload.size());
}

std::string choose(const Int8Array& values, int64_t rows, double speed_tolerance) {
  const WeightShape shape = shape_of(values, rows);
  if (!(speed_tolerance >= 0)) {
    throw py::value_error("speed_tolerance must be at least 0, got " + std::to_string(speed_tolerance));
  }
  const int8_t* data = values.data();
  const char* name = nullptr;
  without_gil([&] { name = choose_weight_codec(data, shape, speed_tolerance).name; });
  return name;
}

ByteSpan bytes_of(const py::buffer_info& info) {
  if (info.itemsize != 1 || info.ndim != 1 || (info.size > 1 && info.strides[0] != 1)) {
    throw py::type_error("payload must be contiguous bytes");
  }
  return {static_cast<const uint8_t*>(info.ptr), info.size};
}

py::dict parts(const std::string& codec_name, const py::buffer& payload, int64_t count, int64_t rows,
               const std::string& field) {
  const WeightCodec& codec = weight_codec(codec_name, field + ".codec");
  const py::buffer_info info = payload.request();
  const WeightShape shape{count, rows};
  check_weight_shape(shape, field);
  codec.check(bytes_of(info), shape, field);
  const PayloadParts found = codec.parts(bytes_of(info), shape, field);
  py::dict result;
  result["values"] = found.values;
  result["indices"] = found.indices;
  result["tables"] = found.tables;
  result["chunks"] = found.chunks;
  result["header"] = found.header;
  return result;
}

Int8Array decode(const std::string& codec_name, const py::buffer& payload, int64_t count, int64_t rows,
                 const std::string& field, int num_threads) {
  const WeightCodec& codec = weight_codec(codec_name, field + ".codec");
  check_num_threads(num_threads);
  const py::buffer_info info = payload.request();
  const ByteSpan bytes = bytes_of(info);
  const WeightShape shape{count, rows};
  check_weight_shape(shape, field);
  codec.check(bytes, shape, field);
  Int8Array output(count);
  int8_t* data = output.mutable_data();
  without_gil([&] { codec.decode(bytes, shape, data, field, ThreadPool(num_threads)); });
  return output;
}

std::vector<std::string> codec_names(bool openable) {
  std::vector<std::string> names;
  for (const WeightCodec& codec : weight_codecs()) {
    if (!openable || codec.open != nullptr) names.emplace_back(codec.name);
  }
  return names;
}

std::map<std::string, std::string> codec_features() {
  std::map<std::string, std::string> features;
  for (const WeightCodec& codec : weight_codecs()) {
    if (codec.feature) features.emplace(codec.name, codec.feature);
  }
  return features;
}

}  // namespace

void register_codec(py::module_& module) {
  module.def("codec_names", &codec_names, py::kw_only(), py::arg("openable") = false,
             "Names of all weight codecs, or of those whose rows can be decoded by themselves.");
  module.def("codec_features", &codec_features,
             "The required feature of each codec that version 1.0 of the format lacks.");
  module.def("encode_weight", &encode, py::arg("codec"), py::arg("values").noconvert(), py::arg("rows"),
             "Payload of a C-contiguous int8 array seen as `rows` rows.");
  module.def(
      "choose_codec", &choose, py::arg("values").noconvert(), py::arg("rows"), py::arg("speed_tolerance"),
      "Of the codecs whose payload is at most `speed_tolerance` longer than the shortest, the one that is "
      "fastest to decode.");
  module.def("decode_weight", &decode, py::arg("codec"), py::arg("payload"), py::arg("count"), py::arg("rows"),
             py::arg("field"), py::arg("num_threads") = 1,
             "The `count` int8 values of a payload; FormatError naming `field` for any other payload.");
  module.def("payload_parts", &parts, py::arg("codec"), py::arg("payload"), py::arg("count"), py::arg("rows"),
             py::arg("field"),
             "What the bytes of a payload are for: part -> number of bytes, all of them together.");
}

}  // namespace pqk::python
