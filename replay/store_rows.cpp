#include <unistd.h>

#include <cstdlib>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"
#include "replay/store_impl.h"

// Files DIRECTORY/rows-NNNNNNNNNNNN.table: the table's rows from number N on, each file with the place in the record
// log up to which it goes. They can be made again from the log, but for what a prune has changed; so they are written
// without haste, once a file's worth of rows has come, and an opening after a crash reads them and the rest of the log.
namespace quern {

namespace {

constexpr char kPrefix[] = "rows-";
constexpr char kSuffix[] = ".table";
constexpr uint64_t kRows = 131'072;                  // of a file
constexpr uint64_t kLogBytes = uint64_t{512} << 20;  // or so much of the log: reading it takes half a second

}  // namespace

std::string Store::Impl::RowsPath(uint64_t first) const {
  return JoinPath(directory, StrFormat("%s%012llu%s", kPrefix, static_cast<unsigned long long>(first), kSuffix));
}

Status Store::Impl::LoadRowFiles(RecordPlace* end) {
  table.Clear();
  row_files.clear();
  uint64_t needed = 0;
  std::string value;
  const rocksdb::Status status = db->Get(rocksdb::ReadOptions(), kRowsNeeded, &value);
  if (!status.ok() && !status.IsNotFound()) return FromRocks(status);
  if (status.ok()) needed = ParseNumber(value);
  QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(directory));  // sorted
  std::vector<std::string> useless;
  for (const std::string& name : names) {
    if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) continue;
    const uint64_t first = table.newest() + 1;
    const std::string path = JoinPath(directory, name);
    if (useless.empty() && table.LoadRows(path, end))
      row_files.push_back({.first = first, .last = table.newest(), .end = *end});
    else
      useless.push_back(path);
  }
  if (table.newest() < needed)
    return DataLoss(StrCat(RowsPath(table.newest() + 1),
                           ": is missing or damaged, and the log has not all of its records: some were pruned"));
  if (useless.empty()) return {};
  const std::string text =
      useless.front() + ": is damaged or out of order; its rows are made again from the record log";
  if (options.read_only) {
    damaged.push_back(text);
    return {};
  }
  LogWarning(text);
  for (const std::string& path : useless)
    if (unlink(path.c_str()) != 0 && errno != ENOENT) return FromErrno(errno, path);
  return {};
}

// A file that is not full yet is written anew, so that there are few.
Store::Impl::RowFile Store::Impl::NextRowFile() const {
  RowFile next{.first = 1, .last = table.newest(), .end = table_end};
  if (row_files.empty()) return next;
  const RowFile& newest = row_files.back();
  const bool full = newest.last + 1 - newest.first >= kRows / 2;
  next.first = full && newest.last < table.newest() ? newest.last + 1 : newest.first;
  return next;
}

Status Store::Impl::SaveRows() {
  WaitForSaver();
  const bool behind = table.newest() > 0 && (row_files.empty() || row_files.back().end != table_end);
  if (behind) {
    const RowFile next = NextRowFile();
    if (!row_files.empty() && row_files.back().first == next.first) row_files.pop_back();
    row_files.push_back(next);
    row_files.back().changed = true;
  }
  for (RowFile& file : row_files) {
    if (!file.changed) continue;
    QUERN_RETURN_IF_ERROR(WriteFileAtomic(RowsPath(file.first), table.EncodeRows(file.first, file.last, file.end)));
    file.changed = false;
  }
  unsaved_bytes = 0;
  return {};
}

void Store::Impl::SaveRowsLater() {
  if (options.read_only || options.env != nullptr || saving) return;
  const uint64_t saved = row_files.empty() ? 0 : row_files.back().last;  // no saver runs
  if (table.newest() - saved < kRows && unsaved_bytes < kLogBytes) return;
  WaitForSaver();
  saving = true;
  unsaved_bytes = 0;
  saver = std::thread([this, next = NextRowFile()] {
    std::string contents;
    {
      std::shared_lock lock(state_mutex);
      contents = table.EncodeRows(next.first, next.last, next.end);
    }
    if (const Status status = WriteFileAtomic(RowsPath(next.first), contents); !status.ok()) {
      LogWarning("the next opening reads more of the log: " + status.message());
    } else {
      if (!row_files.empty() && row_files.back().first == next.first) row_files.pop_back();
      row_files.push_back(next);
    }
    saving = false;
  });
}

void Store::Impl::SaveRowsAtEnd() {
  WaitForSaver();
  if (db == nullptr || !read_only.empty() || options.read_only || options.env != nullptr) return;
  if (const Status status = SaveRows(); !status.ok())
    LogWarning("the next opening reads more of the log: " + status.message());
}

void Store::Impl::WaitForSaver() {
  if (saver.joinable()) saver.join();
}

void Store::Impl::RowChanged(uint64_t number) {
  for (RowFile& file : row_files)
    if (file.first <= number && number <= file.last) file.changed = true;
}

void Store::Impl::VerifyRowFiles(const std::function<void(const std::string&)>& problem) {
  WaitForSaver();
  for (const RowFile& file : row_files) {
    const Result<std::string> contents = ReadFile(RowsPath(file.first));
    if (!contents.ok())
      problem(contents.status().message());
    else if (*contents != table.EncodeRows(file.first, file.last, file.end))
      problem(RowsPath(file.first) + ": its rows are not those of the records");
  }
}

}  // namespace quern
