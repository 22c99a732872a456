#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace quern {

// The folder of real models, vectors and data sets that are not part of the project: $QUERN_SHARED_DATA, or
// ../shared/data beside the project root.
inline std::string SharedData(const std::string& path) {
  if (const char* dir = std::getenv("QUERN_SHARED_DATA")) return std::string(dir) + "/" + path;
  const char* source = std::getenv("QUERN_SOURCE_DIR");
  return std::string(source != nullptr ? source : ".") + "/../shared/data/" + path;
}

// A folder of its own for one test, removed at the end.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "quern-test-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  ~ScratchFolder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace quern

// First line of a test that needs such data.
#define QUERN_NEED_SHARED_DATA(path) \
  if (!std::filesystem::exists(::quern::SharedData(path))) GTEST_SKIP() << "no " << ::quern::SharedData(path)
