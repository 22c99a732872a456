#pragma once

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "base/random.h"

namespace quern {

// A disk that loses power, or fails now and then. What was not synced when the power went is gone: bytes after the last
// sync of a file, and files whose folder was not synced since they were made. Renames and removals count as lasting.
class Disk : public rocksdb::FileSystemWrapper {
 public:
  explicit Disk(uint64_t seed) : FileSystemWrapper(rocksdb::FileSystem::Default()), random_(seed) {}
  const char* Name() const override { return "quern.crash-test.Disk"; }

  // The power goes at the n-th file operation from now.
  void LosePowerAfter(uint64_t operations) { power_left_ = static_cast<int64_t>(operations); }
  bool has_power() const { return power_; }
  void CutPower() { power_ = false; }
  // After everything that uses the disk is closed: throws away what was not synced.
  void ForgetUnsynced();
  // A sync reports success without doing anything: the control that must lose records.
  void LieAboutSync() { lies_ = true; }

  // One operation in `n` fails: an I/O error, half of a write, now and then no space (rare, because RocksDB asks only
  // every five seconds whether there is room again). 0: none.
  void FailOneIn(uint64_t n) { fail_one_in_ = n; }
  uint64_t injected() const { return injected_; }

  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* context) override;
  rocksdb::IOStatus RenameFile(const std::string& from, const std::string& to, const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* context) override;
  rocksdb::IOStatus DeleteFile(const std::string& name, const rocksdb::IOOptions& options,
                               rocksdb::IODebugContext* context) override;
  rocksdb::IOStatus NewDirectory(const std::string& name, const rocksdb::IOOptions& options,
                                 std::unique_ptr<rocksdb::FSDirectory>* directory,
                                 rocksdb::IODebugContext* context) override;

 private:
  class File;
  class Folder;
  struct Extent {
    uint64_t written = 0;
    uint64_t synced = 0;
    bool linked = false;  // its folder was synced since it was made
  };
  // What becomes of the next operation.
  rocksdb::IOStatus Operate();

  std::atomic<bool> power_{true};
  std::atomic<int64_t> power_left_{-1};
  std::atomic<bool> lies_{false};
  std::atomic<uint64_t> fail_one_in_{0};
  std::atomic<uint64_t> injected_{0};
  std::mutex mutex_;  // guards the rest
  Random random_;
  std::map<std::string, Extent> files_;
};

// What RocksDB is given: the disk, and a clock with which nobody waits long. After a failure RocksDB's threads sleep a
// second before they try again, and whoever closes the database waits for them.
std::shared_ptr<rocksdb::Env> EnvOf(std::shared_ptr<Disk> disk);

}  // namespace quern
