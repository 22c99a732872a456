#pragma once

#include <stdlib.h>

#include <string>
#include <string_view>

#include "base/check.h"
#include "base/file.h"

namespace quern {

// A folder in memory for decoders that read files; one a process.
inline const std::string& Scratch() {
  static const std::string& folder = *[] {  // never destroyed: it is asked for at exit
    auto* name = new std::string("/dev/shm/quern-fuzz-XXXXXX");
    QUERN_CHECK(mkdtemp(name->data()) != nullptr);
    std::atexit([] { (void)RemoveTree(Scratch()); });
    return name;
  }();
  return folder;
}

// Not synced, as WriteFileAtomic would be.
inline void Put(const std::string& path, std::string_view bytes) {
  std::FILE* file = std::fopen(path.c_str(), "w");
  QUERN_CHECK(file != nullptr);
  std::fwrite(bytes.data(), 1, bytes.size(), file);
  std::fclose(file);
}

// The parts of an input, which 0xFF separates.
inline std::string_view NextPart(std::string_view& input) {
  const size_t cut = input.find('\xff');
  const std::string_view part = input.substr(0, cut);
  input = cut == std::string_view::npos ? std::string_view() : input.substr(cut + 1);
  return part;
}

}  // namespace quern
