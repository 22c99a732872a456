#include "base/check.h"
#include "model/hf/safetensors.h"

namespace {

// Every accepted tensor lies inside the file and covers its bytes exactly once.
void Check(std::span<const uint8_t> file) {
  const auto header = quern::ParseSafetensors(file, "fuzz");
  if (!header.ok()) {
    QUERN_CHECK(header.status().message().find('\n') == std::string::npos, header.status().message());
    return;
  }
  int64_t covered = header->buffer_offset;
  for (const quern::TensorInfo& tensor : header->tensors) {
    QUERN_CHECK(tensor.begin >= 0 && tensor.begin <= tensor.end);
    QUERN_CHECK(header->buffer_offset + tensor.end <= static_cast<int64_t>(file.size()));
    QUERN_CHECK(tensor.elements() >= 0);
    covered += tensor.bytes();
  }
  QUERN_CHECK(covered == static_cast<int64_t>(file.size()));
}

}  // namespace

// The input as a whole file, and as a header with its length in front and data behind it.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Check({data, size});
  if (size < 1) return 0;
  std::vector<uint8_t> file(8);
  for (int i = 0; i < 8; ++i) file[i] = static_cast<uint8_t>(static_cast<uint64_t>(size - 1) >> (8 * i));
  file.insert(file.end(), data + 1, data + size);
  file.resize(file.size() + data[0]);
  Check(file);
  return 0;
}
