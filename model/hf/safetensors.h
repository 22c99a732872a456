#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/status.h"
#include "compute/tensor.h"

namespace quern {

// One tensor as a safetensors header describes it.
struct TensorInfo {
  std::string name;
  std::string dtype;  // as written in the file: "F32", "BF16", "U32", ...
  std::vector<int64_t> shape;
  int64_t begin = 0;  // byte range in the buffer that follows the header
  int64_t end = 0;

  int64_t bytes() const { return end - begin; }
  int64_t elements() const;
  std::string ShapeText() const;  // "[256, 64]"
};

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // sorted by name
  std::map<std::string, std::string> metadata;
  int64_t buffer_offset = 0;  // of the first data byte in the file
};

// Checks everything the reference implementation checks: header length (at most 100,000,000 and within the file),
// UTF-8, duplicate keys, known dtypes, shape overflow, size = end - begin, no holes, no overlap, last end = end of the
// file. `origin` names the file in errors. Format: https://github.com/huggingface/safetensors#format
Result<SafetensorsHeader> ParseSafetensors(std::span<const uint8_t> file, const std::string& origin);

// The element type in Quern's terms; nullopt for what has none (F8, U32, ...).
std::optional<DType> SafetensorsDType(std::string_view name);
std::string_view SafetensorsName(DType dtype);

// A tensor to write: the first view.rows * view.cols elements have `shape`.
struct NamedTensor {
  std::string name;
  TensorView view;
  std::vector<int64_t> shape = {};  // empty: {cols} when rows is 1, else {rows, cols}
};

// Writes atomically; equal inputs give equal bytes. Tensors are sorted by name, the data starts at a multiple of 64
// bytes. Floating-point tensors are converted to `dtype` where one is given (round to nearest even).
Status WriteSafetensors(const std::string& path, std::vector<NamedTensor> tensors, std::optional<DType> dtype = {},
                        const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

}  // namespace quern
