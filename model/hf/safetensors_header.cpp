#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <unordered_set>

#include "base/strings.h"
#include "model/hf/json_reader.h"
#include "model/hf/safetensors.h"

namespace quern {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;

struct DTypeBits {
  std::string_view name;
  int bits;
};
constexpr std::array<DTypeBits, 24> kDTypes = {
    {{"F64", 64},        {"F32", 32},         {"F16", 16},         {"BF16", 16},   {"I64", 64},    {"I32", 32},
     {"I16", 16},        {"I8", 8},           {"U64", 64},         {"U32", 32},    {"U16", 16},    {"U8", 8},
     {"BOOL", 8},        {"C64", 64},         {"F8_E4M3", 8},      {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
     {"F8_E5M2FNUZ", 8}, {"F8_E4M3_FNUZ", 8}, {"F8_E5M2_FNUZ", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4}}};

int BitsOf(std::string_view dtype) {
  for (const DTypeBits& entry : kDTypes)
    if (entry.name == dtype) return entry.bits;
  return 0;
}

// Builds the header without a document tree, so that a hostile header costs no more memory than its tensors.
class HeaderSax final : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderSax(SafetensorsHeader* header) : header_(header) {}
  const std::string& error() const { return error_; }

  bool null() override {
    if (state_ == State::kTensorValue && tensor_.name == "__metadata__") {
      state_ = State::kTop;
      return true;
    }
    return Scalar();
  }
  bool boolean(bool) override { return Scalar(); }
  bool number_float(double, const std::string&) override { return Scalar(); }
  bool binary(binary_t&) override { return Scalar(); }
  bool number_integer(int64_t) override { return Scalar(); }

  bool number_unsigned(uint64_t value) override {
    if (state_ != State::kShape && state_ != State::kOffsets) return Scalar();
    if (value > static_cast<uint64_t>(INT64_MAX)) return Fail(StrCat("number ", value, " is too large"));
    (state_ == State::kShape ? tensor_.shape : offsets_).push_back(static_cast<int64_t>(value));
    return offsets_.size() <= 2 || Fail("\"data_offsets\" must hold two numbers");
  }

  bool string(std::string& value) override {
    if (state_ == State::kMetadata) {
      header_->metadata[key_] = value;
      return true;
    }
    if (state_ != State::kInfoValue || key_ != "dtype") return Scalar();
    if (BitsOf(value) == 0) return Fail(StrCat("unknown dtype \"", value, "\""));
    tensor_.dtype = value;
    state_ = State::kInfo;
    return true;
  }

  bool start_object(size_t) override {
    if (skipped_ > 0) return ++skipped_;
    switch (state_) {
      case State::kStart: state_ = State::kTop; return true;
      case State::kTensorValue: state_ = tensor_.name == "__metadata__" ? State::kMetadata : State::kInfo; return true;
      case State::kInfoValue:
        if (Known()) return Fail(StrCat("\"", key_, "\" has the wrong type"));
        return ++skipped_;
      default: return Fail("unexpected object");
    }
  }

  bool key(std::string& name) override {
    if (skipped_ > 0) return true;
    if (state_ == State::kTop) {
      tensor_ = {};
      tensor_.name = name;
      offsets_.clear();
      has_shape_ = has_offsets_ = false;
      fields_.clear();
      state_ = State::kTensorValue;
      return names_.insert(name).second || Fail("the name appears twice");
    }
    key_ = name;
    if (!fields_.insert(name).second) return Fail(StrCat("\"", name, "\" appears twice"));
    if (state_ == State::kInfo) state_ = State::kInfoValue;
    return true;
  }

  bool end_object() override {
    if (skipped_ > 0) return EndSkipped();
    if (state_ == State::kMetadata) {
      state_ = State::kTop;
    } else if (state_ == State::kInfo) {
      if (tensor_.dtype.empty() || !has_shape_ || !has_offsets_)
        return Fail("\"dtype\", \"shape\" and \"data_offsets\" must all be there");
      header_->tensors.push_back(std::move(tensor_));
      state_ = State::kTop;
    } else {
      state_ = State::kEnd;
    }
    return true;
  }

  bool start_array(size_t) override {
    if (skipped_ > 0) return ++skipped_;
    if (state_ != State::kInfoValue) return Fail("unexpected array");
    if (key_ == "shape") {
      state_ = State::kShape;
    } else if (key_ == "data_offsets") {
      state_ = State::kOffsets;
    } else if (Known()) {
      return Fail(StrCat("\"", key_, "\" has the wrong type"));
    } else {
      ++skipped_;
    }
    return true;
  }

  bool end_array() override {
    if (skipped_ > 0) return EndSkipped();
    if (state_ == State::kShape) {
      has_shape_ = true;
    } else {
      if (offsets_.size() != 2) return Fail("\"data_offsets\" must hold two numbers");
      tensor_.begin = offsets_[0];
      tensor_.end = offsets_[1];
      has_offsets_ = true;
    }
    state_ = State::kInfo;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    tensor_.name.clear();
    return Fail(StrCat("the header is not valid JSON at byte ", position));
  }

 private:
  enum class State { kStart, kTop, kTensorValue, kMetadata, kInfo, kInfoValue, kShape, kOffsets, kEnd };

  bool Known() const { return key_ == "dtype" || key_ == "shape" || key_ == "data_offsets"; }
  // A value of no use here: fine inside unknown keys, an error elsewhere.
  bool Scalar() {
    if (skipped_ > 0) return true;
    if (state_ == State::kInfoValue && !Known()) {
      state_ = State::kInfo;
      return true;
    }
    if (state_ == State::kMetadata) return Fail(StrCat("\"", key_, "\" must be a string"));
    if (state_ == State::kInfoValue) return Fail(StrCat("\"", key_, "\" has the wrong type"));
    return Fail("a value has the wrong type");
  }
  bool EndSkipped() {
    if (--skipped_ == 0) state_ = State::kInfo;
    return true;
  }
  bool Fail(const std::string& what) {
    if (error_.empty()) error_ = tensor_.name.empty() ? what : StrCat("tensor ", tensor_.name, ": ", what);
    return false;
  }

  SafetensorsHeader* header_;
  State state_ = State::kStart;
  TensorInfo tensor_;
  std::string key_;
  std::vector<int64_t> offsets_;
  std::unordered_set<std::string> names_;
  std::unordered_set<std::string> fields_;
  bool has_shape_ = false, has_offsets_ = false;
  int64_t skipped_ = 0;  // open containers inside an unknown key
  std::string error_;
};

// Bytes of the tensor as its shape says; -1 on overflow or where the elements do not fill whole bytes.
int64_t BytesOf(const TensorInfo& tensor) {
  int64_t bits = BitsOf(tensor.dtype);
  for (const int64_t dim : tensor.shape)
    if (__builtin_mul_overflow(bits, dim, &bits)) return -1;
  return bits % 8 == 0 ? bits / 8 : -1;
}

Status CheckLayout(const SafetensorsHeader& header, int64_t buffer_bytes, const std::string& origin) {
  std::vector<const TensorInfo*> by_offset;
  for (const TensorInfo& tensor : header.tensors) by_offset.push_back(&tensor);
  std::sort(by_offset.begin(), by_offset.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return std::tie(a->begin, a->end, a->name) < std::tie(b->begin, b->end, b->name);
  });
  int64_t expected = 0;
  for (const TensorInfo* tensor : by_offset) {
    const std::string where = StrCat(origin, ": tensor ", tensor->name, ": ");
    if (tensor->end < tensor->begin) return InvalidArgument(where + "data_offsets end before they begin");
    const int64_t bytes = BytesOf(*tensor);
    if (bytes < 0)
      return InvalidArgument(StrCat(where, "shape ", tensor->ShapeText(), " overflows or fills no whole bytes"));
    if (bytes != tensor->bytes())
      return InvalidArgument(StrCat(where, tensor->dtype, " ", tensor->ShapeText(), " takes ", bytes,
                                    " bytes, but data_offsets span ", tensor->bytes()));
    if (tensor->begin != expected)
      return InvalidArgument(StrCat(where, tensor->begin < expected ? "overlaps the tensor before it" : "leaves a hole",
                                    ": data begins at ", tensor->begin, " where ", expected, " was expected"));
    expected = tensor->end;
  }
  if (expected != buffer_bytes)
    return InvalidArgument(StrCat(origin, ": the tensors end at byte ", expected, " of the data, but the file holds ",
                                  buffer_bytes, expected > buffer_bytes ? " (truncated?)" : ""));
  return {};
}

}  // namespace

int64_t TensorInfo::elements() const {
  int64_t count = 1;
  for (const int64_t dim : shape) count *= dim;
  return count;
}

std::string TensorInfo::ShapeText() const {
  std::vector<std::string> dims;
  for (const int64_t dim : shape) dims.push_back(std::to_string(dim));
  return "[" + StrJoin(dims, ", ") + "]";
}

Result<SafetensorsHeader> ParseSafetensors(std::span<const uint8_t> file, const std::string& origin) {
  if (file.size() < 8)
    return InvalidArgument(StrCat(origin, ": ", file.size(), " bytes is too short for a safetensors file"));
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | file[i];
  if (length > kMaxHeaderBytes)
    return InvalidArgument(StrCat(origin, ": header length ", length, " is over the limit of ", kMaxHeaderBytes));
  if (length > file.size() - 8)
    return InvalidArgument(
        StrCat(origin, ": header length ", length, " exceeds the file of ", file.size(), " bytes (truncated?)"));

  SafetensorsHeader header;
  header.buffer_offset = static_cast<int64_t>(8 + length);
  HeaderSax sax(&header);
  const auto* begin = reinterpret_cast<const char*>(file.data()) + 8;
  if (!Json::sax_parse(begin, begin + length, &sax) || !sax.error().empty())
    return OneLine(InvalidArgument(StrCat(origin, ": ", sax.error().empty() ? "bad header" : sax.error())));
  QUERN_RETURN_IF_ERROR(OneLine(CheckLayout(header, static_cast<int64_t>(file.size()) - header.buffer_offset, origin)));
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  return header;
}

std::optional<DType> SafetensorsDType(std::string_view name) {
  if (name == "F32") return DType::kF32;
  if (name == "BF16") return DType::kBf16;
  if (name == "F16") return DType::kF16;
  if (name == "F64") return DType::kF64;
  if (name == "I32") return DType::kI32;
  if (name == "U8") return DType::kU8;
  return std::nullopt;
}

std::string_view SafetensorsName(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "F32";
    case DType::kBf16: return "BF16";
    case DType::kF16: return "F16";
    case DType::kF64: return "F64";
    case DType::kI32: return "I32";
    case DType::kU8: return "U8";
    case DType::kE4M3: return "F8_E4M3";
    case DType::kE5M2: return "F8_E5M2";
  }
  return "?";
}

}  // namespace quern
