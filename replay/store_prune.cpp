#include <algorithm>
#include <map>

#include "base/strings.h"
#include "replay/store_impl.h"

namespace quern {

namespace {

constexpr size_t kMoveBytes = size_t{16} << 20;  // of one frame of moved records
constexpr uint64_t kDeadShare = 8;               // a segment that lost less than 1 / kDeadShare is left as it is

}  // namespace

Result<PruneReport> Store::Prune(const PruneOptions& options) {
  Impl& store = *impl_;
  if (store.options.read_only && !options.dry_run)
    return FailedPrecondition(store.directory + ": opened for reading only");
  std::lock_guard write_lock(store.write_mutex);
  if (!store.read_only.empty()) QUERN_RETURN_IF_ERROR(store.Recover());
  PruneReport report;
  for (uint64_t number = 1; number <= store.table.newest(); ++number)
    if (!store.table.row(number).pruned) report.left_bytes += store.table.row(number).bytes;

  std::vector<bool> kept_kinds(store.table.kinds());
  for (size_t id = 0; id < kept_kinds.size(); ++id)
    for (const uint32_t tag : store.table.tag_set(store.table.kind(static_cast<uint32_t>(id)).tag_set))
      kept_kinds[id] =
          kept_kinds[id] || std::count(options.keep_tags.begin(), options.keep_tags.end(), store.table.name(tag)) > 0;
  const auto generated = [&](uint64_t number) { return store.table.KindOf(number).source != v1::SOURCE_REAL; };
  uint64_t newest_kept = store.table.newest() + 1;  // generated ones from here on stay
  for (uint64_t left = options.keep_newest; left > 0 && newest_kept > 1;) {
    --newest_kept;
    const RecordRow& row = store.table.row(newest_kept);
    if (!row.pruned && !kept_kinds[row.kind] && generated(newest_kept)) --left;
  }
  std::vector<uint64_t> going;
  for (uint64_t number = 1; number <= store.table.newest(); ++number) {
    const RecordRow& row = store.table.row(number);
    if (row.pruned) continue;
    if (kept_kinds[row.kind]) continue;
    const bool goes = report.left_bytes > options.max_bytes || row.created_unix_ms < options.before_unix_ms;
    if (!goes) continue;
    if (generated(number) && number >= newest_kept) continue;
    if (!generated(number) && !options.real_too) {
      ++report.spared_real;
      continue;
    }
    ++report.records;
    report.bytes += row.bytes;
    report.left_bytes -= row.bytes;
    going.push_back(number);
  }
  if (options.dry_run || going.empty()) return report;
  // From now on the log alone does not say which records there are.
  QUERN_RETURN_IF_ERROR(store.SaveRows());
  rocksdb::WriteOptions synced;
  synced.sync = true;
  const rocksdb::Status kept = store.db->Put(synced, kRowsNeeded, NumberKey(store.table.newest()));
  if (!kept.ok()) return store.WriteFailed(store.FromRocks(kept));
  {
    std::unique_lock lock(store.state_mutex);
    for (const uint64_t number : going) store.table.SetPruned(number);
    store.sampler.Clear();
  }
  for (const uint64_t number : going) store.RowChanged(number);
  if (const Status status = store.SaveRows(); !status.ok()) return store.WriteFailed(status);
  QUERN_RETURN_IF_ERROR(store.Reclaim());
  return report;
}

Status Store::Impl::Reclaim() {
  // All rows and writers are on disk without the log, and nothing is added to its segments: none is needed but for the
  // records in it.
  QUERN_RETURN_IF_ERROR(log->Begin());
  table_end = log->end();
  QUERN_RETURN_IF_ERROR(SaveRows());
  QUERN_RETURN_IF_ERROR(SyncState());
  std::map<uint32_t, std::vector<uint64_t>> living;
  std::map<uint32_t, uint64_t> bytes;
  for (uint64_t number = 1; number <= table.newest(); ++number) {
    const RecordRow& row = table.row(number);
    if (row.pruned) continue;
    living[row.place.segment].push_back(number);
    bytes[row.place.segment] += row.bytes;
  }
  for (const uint32_t segment : log->Segments()) {
    if (segment >= log->end().segment) continue;
    const uint64_t size = log->SegmentBytes(segment);
    const std::vector<uint64_t>& numbers = living[segment];
    // Headers of records and frames count as dead: they are few unless the records are tiny.
    if (!numbers.empty() && size - std::min(size, bytes[segment]) < size / kDeadShare) continue;
    for (size_t begin = 0; begin < numbers.size();) {
      std::vector<std::string> contents;
      std::vector<RecordLog::Entry> entries;
      for (size_t sum = 0; begin < numbers.size() && sum < kMoveBytes; ++begin) {
        QUERN_RETURN_IF_ERROR(ReadRecord(numbers[begin], &contents.emplace_back()));
        entries.push_back({.number = numbers[begin], .bytes = {}});
        sum += contents.back().size();
      }
      for (size_t i = 0; i < entries.size(); ++i) {
        entries[i].bytes = contents[i];
        entries[i].hash = RecordLog::HashOf(contents[i]);
      }
      std::vector<RecordPlace> places;
      if (const Status status = log->Move(entries, &places); !status.ok()) return WriteFailed(status);
      std::unique_lock lock(state_mutex);
      for (size_t i = 0; i < entries.size(); ++i) {
        table.SetPlace(entries[i].number, places[i]);
        RowChanged(entries[i].number);
      }
    }
    if (const Status status = SaveRows(); !status.ok()) return WriteFailed(status);
    QUERN_RETURN_IF_ERROR(log->Remove(segment));
  }
  log->Seal();
  return {};
}

}  // namespace quern
