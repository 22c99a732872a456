#include <algorithm>
#include <cstring>
#include <type_traits>

#include "base/strings.h"
#include "model/hf/json_reader.h"
#include "model/hf/safetensors.h"

namespace quern {
namespace {

bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF64;
}

struct Half {
  uint16_t bits = 0;
  Half() = default;
  explicit Half(float value) : bits(FloatToHalf(value)) {}
  explicit operator float() const { return HalfToFloat(bits); }
};

template <typename To, typename From>
To Convert(From value) {
  if constexpr (std::is_arithmetic_v<To> && std::is_arithmetic_v<From>) {
    return static_cast<To>(value);
  } else {
    return static_cast<To>(static_cast<float>(value));
  }
}

template <typename Body>
void WithFloatType(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kF32: return body(float{});
    case DType::kF64: return body(double{});
    case DType::kBf16: return body(Bf16{});
    default: return body(Half{});
  }
}

void ConvertRow(const TensorView& view, int64_t row, DType dtype, uint8_t* out) {
  WithFloatType(view.dtype, [&](auto from) {
    WithFloatType(dtype, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      const From* in = view.Row<From>(row);
      auto* target = reinterpret_cast<To*>(out);
      for (int64_t c = 0; c < view.cols; ++c) target[c] = Convert<To>(in[c]);
    });
  });
}

Status WriteTensor(const TensorView& view, DType dtype, const WriteSink& sink) {
  const int64_t row_bytes = view.cols * DTypeSize(dtype);
  if (view.rows == 0 || row_bytes == 0) return {};
  if (dtype == view.dtype && view.stride == view.cols)
    return sink(view.data, static_cast<size_t>(view.rows * row_bytes));
  const int64_t rows_at_once = std::clamp<int64_t>((1 << 20) / row_bytes, 1, view.rows);
  std::vector<uint8_t> buffer(static_cast<size_t>(rows_at_once * row_bytes));
  for (int64_t begin = 0; begin < view.rows; begin += rows_at_once) {
    const int64_t count = std::min(rows_at_once, view.rows - begin);
    for (int64_t r = 0; r < count; ++r) {
      uint8_t* out = buffer.data() + r * row_bytes;
      if (dtype == view.dtype) {
        std::memcpy(out, view.Row<uint8_t>(begin + r), static_cast<size_t>(row_bytes));
      } else {
        ConvertRow(view, begin + r, dtype, out);
      }
    }
    QUERN_RETURN_IF_ERROR(sink(buffer.data(), static_cast<size_t>(count * row_bytes)));
  }
  return {};
}

}  // namespace

Status WriteSafetensors(const std::string& path, std::vector<NamedTensor> tensors, std::optional<DType> dtype,
                        const std::map<std::string, std::string>& metadata) {
  std::sort(tensors.begin(), tensors.end(), [](const NamedTensor& a, const NamedTensor& b) { return a.name < b.name; });
  const auto stored = [&](const TensorView& view) { return dtype && IsFloat(view.dtype) ? *dtype : view.dtype; };

  nlohmann::ordered_json header;  // std::map order of metadata and of the sorted tensors
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t offset = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    NamedTensor& tensor = tensors[i];
    const TensorView& view = tensor.view;
    if (i > 0 && tensors[i - 1].name == tensor.name)
      return InvalidArgument(StrCat(path, ": tensor ", tensor.name, " was given twice"));
    if (tensor.name == "__metadata__") return InvalidArgument(path + ": a tensor cannot be named __metadata__");
    if (tensor.shape.empty())
      tensor.shape = view.rows == 1 ? std::vector<int64_t>{view.cols} : std::vector<int64_t>{view.rows, view.cols};
    int64_t elements = 1;
    for (const int64_t dim : tensor.shape) elements *= dim;
    QUERN_CHECK(elements == view.rows * view.cols, tensor.name);
    const int64_t bytes = elements * DTypeSize(stored(view));
    header[tensor.name] = {
        {"dtype", SafetensorsName(stored(view))}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text;
  try {
    text = header.is_null() ? "{}" : header.dump();
  } catch (const Json::exception&) {
    return InvalidArgument(path + ": a tensor name or metadata entry is not UTF-8");
  }
  text.append((64 - (8 + text.size()) % 64) % 64, ' ');

  return WriteFileAtomic(path, [&](const WriteSink& sink) -> Status {
    uint8_t length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(static_cast<uint64_t>(text.size()) >> (8 * i));
    QUERN_RETURN_IF_ERROR(sink(length, sizeof(length)));
    QUERN_RETURN_IF_ERROR(sink(text.data(), text.size()));
    for (const NamedTensor& tensor : tensors)
      QUERN_RETURN_IF_ERROR(WriteTensor(tensor.view, stored(tensor.view), sink));
    return {};
  });
}

}  // namespace quern
