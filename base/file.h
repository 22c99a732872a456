#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace quern {

// A read-only mapping of a whole file. Movable; unmapped on destruction. Reads of it are thread-safe.
class MappedFile {
 public:
  static Result<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  std::span<const uint8_t> bytes() const { return {data_, size_}; }

 private:
  MappedFile() = default;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

Result<std::string> ReadFile(const std::string& path);
// Writes path.tmp-PID, fsyncs, renames over `path`, fsyncs the folder: readers see the old or the new file, whole.
Status WriteFileAtomic(const std::string& path, std::string_view contents);
// The same for writers that stream: `write` gets a sink to call any number of times.
using WriteSink = std::function<Status(const void* data, size_t size)>;
Status WriteFileAtomic(const std::string& path, const std::function<Status(const WriteSink&)>& write);
// Makes a rename or a new name in the folder of `path` durable.
Status SyncFolderOf(const std::string& path);
// Replaces nothing that is not a file; durable when it returns.
Status RenamePath(const std::string& from, const std::string& to);
Status MakeDirectories(const std::string& path);
bool PathExists(const std::string& path);
Result<std::vector<std::string>> ListDirectory(const std::string& path);  // names, sorted
Status RemoveTree(const std::string& path);
std::string JoinPath(const std::string& folder, const std::string& name);
Result<uint64_t> DiskFreeBytes(const std::string& path);

}  // namespace quern
