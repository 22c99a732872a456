#pragma once

#include <stdlib.h>

#include <string>

#include "base/check.h"
#include "base/file.h"

namespace quern {

// A new folder with mode 700, removed with all its contents at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    char name[] = "/tmp/quern-test-XXXXXX";
    QUERN_CHECK(mkdtemp(name) != nullptr);
    path_ = name;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() { (void)RemoveTree(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace quern
