#include "tests/crash/disk.h"

#include <rocksdb/system_clock.h>
#include <unistd.h>

#include <algorithm>

namespace quern {

rocksdb::IOStatus Disk::Operate() {
  if (!power_) return rocksdb::IOStatus::IOError("no power");
  if (power_left_ >= 0 && power_left_-- == 0) {
    power_ = false;
    return rocksdb::IOStatus::IOError("no power");
  }
  const uint64_t n = fail_one_in_;
  if (n == 0) return rocksdb::IOStatus::OK();
  std::lock_guard lock(mutex_);
  if (random_.Below(n) != 0) return rocksdb::IOStatus::OK();
  ++injected_;
  return random_.Below(200) == 0 ? rocksdb::IOStatus::NoSpace("injected") : rocksdb::IOStatus::IOError("injected");
}

class Disk::File : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  File(std::unique_ptr<rocksdb::FSWritableFile>&& file, Disk* disk, std::string name)
      : FSWritableFileOwnerWrapper(std::move(file)), disk_(disk), name_(std::move(name)) {}

  rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                           rocksdb::IODebugContext* context) override {
    const rocksdb::IOStatus fate = disk_->Operate();
    const size_t size = fate.ok() ? data.size() : disk_->has_power() ? data.size() / 2 : 0;
    if (size > 0) {
      const rocksdb::IOStatus status = target()->Append(rocksdb::Slice(data.data(), size), options, context);
      if (!status.ok()) return status;
      std::lock_guard lock(disk_->mutex_);
      disk_->files_[name_].written += size;
    }
    return fate;
  }
  rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                           const rocksdb::DataVerificationInfo&, rocksdb::IODebugContext* context) override {
    return Append(data, options, context);
  }
  rocksdb::IOStatus Flush(const rocksdb::IOOptions& options, rocksdb::IODebugContext* context) override {
    const rocksdb::IOStatus fate = disk_->Operate();
    return fate.ok() ? target()->Flush(options, context) : fate;
  }
  rocksdb::IOStatus Sync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* context) override {
    return Synced([&] { return target()->Flush(options, context); });
  }
  rocksdb::IOStatus Fsync(const rocksdb::IOOptions& options, rocksdb::IODebugContext* context) override {
    return Synced([&] { return target()->Flush(options, context); });
  }
  rocksdb::IOStatus RangeSync(uint64_t, uint64_t, const rocksdb::IOOptions&, rocksdb::IODebugContext*) override {
    return rocksdb::IOStatus::OK();  // promises nothing
  }
  rocksdb::IOStatus Truncate(uint64_t size, const rocksdb::IOOptions& options,
                             rocksdb::IODebugContext* context) override {
    const rocksdb::IOStatus status = target()->Truncate(size, options, context);
    if (status.ok()) {
      std::lock_guard lock(disk_->mutex_);
      Extent& extent = disk_->files_[name_];
      extent.written = size;
      extent.synced = std::min(extent.synced, size);
    }
    return status;
  }

 private:
  // The machine under the test keeps its power: handing the bytes to its kernel is enough.
  template <typename Function>
  rocksdb::IOStatus Synced(Function flush) {
    const rocksdb::IOStatus fate = disk_->Operate();
    if (!fate.ok()) return fate;
    const rocksdb::IOStatus status = flush();
    if (status.ok() && !disk_->lies_) {
      std::lock_guard lock(disk_->mutex_);
      Extent& extent = disk_->files_[name_];
      extent.synced = extent.written;
    }
    return status;
  }

  Disk* disk_;
  std::string name_;
};

class Disk::Folder : public rocksdb::FSDirectoryWrapper {
 public:
  Folder(std::unique_ptr<rocksdb::FSDirectory>&& directory, Disk* disk, std::string name)
      : FSDirectoryWrapper(std::move(directory)), disk_(disk), name_(std::move(name)) {}
  rocksdb::IOStatus Fsync(const rocksdb::IOOptions&, rocksdb::IODebugContext*) override { return Link(); }
  rocksdb::IOStatus FsyncWithDirOptions(const rocksdb::IOOptions&, rocksdb::IODebugContext*,
                                        const rocksdb::DirFsyncOptions&) override {
    return Link();
  }

 private:
  rocksdb::IOStatus Link() {
    const rocksdb::IOStatus fate = disk_->Operate();
    if (!fate.ok() || disk_->lies_) return fate;
    std::lock_guard lock(disk_->mutex_);
    for (auto& [name, extent] : disk_->files_)
      if (name.compare(0, name_.size(), name_) == 0) extent.linked = true;
    return fate;
  }

  Disk* disk_;
  std::string name_;
};

rocksdb::IOStatus Disk::NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                        std::unique_ptr<rocksdb::FSWritableFile>* file,
                                        rocksdb::IODebugContext* context) {
  const rocksdb::IOStatus fate = Operate();
  if (!fate.ok()) return fate;
  rocksdb::FileOptions plain = options;
  plain.use_mmap_writes = false;
  plain.use_direct_writes = false;
  const rocksdb::IOStatus status = target()->NewWritableFile(name, plain, file, context);
  if (!status.ok()) return status;
  *file = std::make_unique<File>(std::move(*file), this, name);
  std::lock_guard lock(mutex_);
  files_[name] = Extent();
  return status;
}

rocksdb::IOStatus Disk::RenameFile(const std::string& from, const std::string& to, const rocksdb::IOOptions& options,
                                   rocksdb::IODebugContext* context) {
  const rocksdb::IOStatus fate = Operate();
  if (!fate.ok()) return fate;
  const rocksdb::IOStatus status = target()->RenameFile(from, to, options, context);
  std::lock_guard lock(mutex_);
  if (const auto it = files_.find(from); status.ok() && it != files_.end()) {
    files_[to] = it->second;
    files_[to].linked = true;
    files_.erase(from);
  }
  return status;
}

rocksdb::IOStatus Disk::DeleteFile(const std::string& name, const rocksdb::IOOptions& options,
                                   rocksdb::IODebugContext* context) {
  const rocksdb::IOStatus fate = Operate();
  if (!fate.ok()) return fate;
  const rocksdb::IOStatus status = target()->DeleteFile(name, options, context);
  std::lock_guard lock(mutex_);
  if (status.ok()) files_.erase(name);
  return status;
}

rocksdb::IOStatus Disk::NewDirectory(const std::string& name, const rocksdb::IOOptions& options,
                                     std::unique_ptr<rocksdb::FSDirectory>* directory,
                                     rocksdb::IODebugContext* context) {
  const rocksdb::IOStatus fate = Operate();
  if (!fate.ok()) return fate;
  const rocksdb::IOStatus status = target()->NewDirectory(name, options, directory, context);
  if (status.ok()) *directory = std::make_unique<Folder>(std::move(*directory), this, name);
  return status;
}

namespace {

class ImpatientClock : public rocksdb::SystemClockWrapper {
 public:
  ImpatientClock() : SystemClockWrapper(rocksdb::SystemClock::Default()) {}
  const char* Name() const override { return "quern.crash-test.ImpatientClock"; }
  void SleepForMicroseconds(int micros) override { target_->SleepForMicroseconds(std::min(micros, 1000)); }
};

class DiskEnv : public rocksdb::EnvWrapper {
 public:
  explicit DiskEnv(std::shared_ptr<Disk> disk) : EnvWrapper(rocksdb::NewCompositeEnv(std::move(disk))) {
    system_clock_ = std::make_shared<ImpatientClock>();
  }
  const char* Name() const override { return "quern.crash-test.DiskEnv"; }
};

}  // namespace

std::shared_ptr<rocksdb::Env> EnvOf(std::shared_ptr<Disk> disk) { return std::make_shared<DiskEnv>(std::move(disk)); }

void Disk::ForgetUnsynced() {
  std::lock_guard lock(mutex_);
  for (const auto& [name, extent] : files_) {
    if (!extent.linked)
      unlink(name.c_str());
    else if (truncate(name.c_str(), static_cast<off_t>(extent.synced)) != 0)
      continue;  // removed meanwhile
  }
  files_.clear();
}

}  // namespace quern
