#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

namespace quern {

namespace {

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

// Has the disk begin with a piece while the next is written, so that little is left for fsync to wait for.
class WriteBehind {
 public:
  WriteBehind(int fd, const std::string& path) : fd_(fd), path_(path) {}
  Status Write(const void* data, size_t size) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    while (size > 0) {
      const ssize_t written = write(fd_, bytes, std::min(size, kPiece));
      if (written < 0) {
        if (errno == EINTR) continue;
        return FromErrno(errno, path_);
      }
      bytes += written;
      size -= static_cast<size_t>(written);
      written_ += written;
      if (written_ - begun_ < static_cast<off_t>(kPiece)) continue;
      // Where a file system can't do this, fsync does it all.
      (void)sync_file_range(fd_, begun_, written_ - begun_, SYNC_FILE_RANGE_WRITE);
      begun_ = written_;
    }
    return {};
  }

 private:
  static constexpr size_t kPiece = size_t{4} << 20;
  int fd_;
  const std::string& path_;
  off_t written_ = 0;
  off_t begun_ = 0;  // of these bytes the disk was told
};

}  // namespace

Result<MappedFile> MappedFile::Open(const std::string& path) {
  FileDescriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return FromErrno(errno, path);
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return FromErrno(errno, path);
  if (!S_ISREG(info.st_mode)) return InvalidArgument(path + ": not a regular file");
  MappedFile file;
  file.size_ = static_cast<size_t>(info.st_size);
  if (file.size_ > 0) {
    void* data = mmap(nullptr, file.size_, PROT_READ, MAP_SHARED, fd.get(), 0);
    if (data == MAP_FAILED) return FromErrno(errno, path);
    file.data_ = static_cast<const uint8_t*>(data);
  }
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

Result<std::string> ReadFile(const std::string& path) {
  FileDescriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return FromErrno(errno, path);
  std::string out;
  char buffer[1 << 16];
  while (true) {
    const ssize_t got = read(fd.get(), buffer, sizeof(buffer));
    if (got < 0) {
      if (errno == EINTR) continue;
      return FromErrno(errno, path);
    }
    if (got == 0) return out;
    out.append(buffer, static_cast<size_t>(got));
  }
}

Status WriteFileAtomic(const std::string& path, std::string_view contents) {
  return WriteFileAtomic(path, [&](const WriteSink& sink) { return sink(contents.data(), contents.size()); });
}

Status WriteFileAtomic(const std::string& path, const std::function<Status(const WriteSink&)>& write) {
  const std::string temporary = path + ".tmp-" + std::to_string(getpid());
  Status status;
  {
    FileDescriptor fd(open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (fd.get() < 0) return FromErrno(errno, temporary);
    WriteBehind file(fd.get(), path);
    status = write([&](const void* data, size_t size) { return file.Write(data, size); });
    if (status.ok() && fsync(fd.get()) != 0) status = FromErrno(errno, path);
  }
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0) status = FromErrno(errno, path);
  if (!status.ok()) {
    unlink(temporary.c_str());
    return status;
  }
  return SyncFolderOf(path);
}

Status SyncFolderOf(const std::string& path) {
  std::string folder = std::filesystem::path(path).parent_path();
  if (folder.empty()) folder = ".";
  FileDescriptor fd(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0 || fsync(fd.get()) != 0) return FromErrno(errno, folder);
  return {};
}

Status RenamePath(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) != 0) return FromErrno(errno, from + " to " + to);
  return SyncFolderOf(to);
}

Status MakeDirectories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  return error ? FromErrno(error.value(), path) : Status();
}

bool PathExists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

Result<std::vector<std::string>> ListDirectory(const std::string& path) {
  std::error_code error;
  std::vector<std::string> names;
  for (std::filesystem::directory_iterator it(path, error), end; !error && it != end; it.increment(error))
    names.push_back(it->path().filename());
  if (error) return FromErrno(error.value(), path);
  std::sort(names.begin(), names.end());
  return names;
}

Status RemoveTree(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  return error ? FromErrno(error.value(), path) : Status();
}

std::string JoinPath(const std::string& folder, const std::string& name) {
  return std::filesystem::path(folder) / name;
}

Result<uint64_t> DiskFreeBytes(const std::string& path) {
  struct statvfs info;
  if (statvfs(path.c_str(), &info) != 0) return FromErrno(errno, path);
  return static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
}

}  // namespace quern
