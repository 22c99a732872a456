#include <rocksdb/file_system.h>
#include <xxhash.h>

#include <cstring>

#include "base/log.h"
#include "replay/record_log.h"
#include "replay/record_table.h"
#include "tests/fuzz/scratch.h"

// The store's own files: segments of the record log, and rows of its table. Most inputs get the checksums that
// they would have been written with, so that more than those is looked at.
namespace {

using namespace quern;

// Offsets and sizes of replay/record_log.cpp.
constexpr size_t kSegmentHeader = 32, kFrameHeader = 40, kEntryHeader = 24;

uint64_t Number(const std::string& bytes, size_t at) {
  uint64_t number = 0;
  std::memcpy(&number, bytes.data() + at, sizeof(number));
  return number;
}
void SetNumber(std::string& bytes, size_t at, uint64_t number) {
  std::memcpy(bytes.data() + at, &number, sizeof(number));
}

// Of one frame at `at`; where it ends, or the file's end.
size_t MendFrame(std::string& file, size_t at, uint32_t segment) {
  const uint32_t magic = 0x6d617266;
  std::memcpy(file.data() + at, &magic, sizeof(magic));
  uint32_t entries = 0;
  std::memcpy(&entries, file.data() + at + 4, sizeof(entries));
  const uint64_t entry_bytes = Number(file, at + 8), trailer_bytes = Number(file, at + 16);
  const uint64_t left = file.size() - at - kFrameHeader;
  const bool fits = entry_bytes <= left && trailer_bytes <= left - entry_bytes;
  if (fits) {
    size_t entry = at + kFrameHeader;
    const size_t end = entry + entry_bytes;
    for (uint32_t i = 0; i < entries && entry + kEntryHeader <= end; ++i) {
      const uint64_t size = Number(file, entry + 8);
      if (size > end - entry - kEntryHeader) break;
      const uint64_t hashed[2] = {Number(file, entry), XXH3_64bits(file.data() + entry + kEntryHeader, size)};
      SetNumber(file, entry + 16, XXH3_64bits(hashed, sizeof(hashed)));
      entry += kEntryHeader + size;
    }
    SetNumber(file, at + 24, XXH3_64bits(file.data() + end, trailer_bytes));
  }
  SetNumber(file, at + 32, XXH3_64bits_withSeed(file.data() + at, 32, uint64_t{segment} << 32 | at));
  return fits ? at + kFrameHeader + entry_bytes + trailer_bytes : file.size();
}

void MendSegment(std::string& file, uint32_t segment) {
  if (file.size() < kSegmentHeader) return;
  SetNumber(file, 0, 0x32636572'6e726571);
  std::memcpy(file.data() + 12, &segment, sizeof(segment));
  SetNumber(file, 24, XXH3_64bits(file.data(), 24));
  for (size_t at = kSegmentHeader; at + kFrameHeader <= file.size();) at = MendFrame(file, at, segment);
}

void OneLine(const Status& status) { QUERN_CHECK(status.message().find('\n') == std::string::npos, status.message()); }

void ReadLog() {
  RecordLog log(Scratch() + "/log", rocksdb::FileSystem::Default().get());
  const Status opened = log.Open();
  OneLine(opened);
  if (!opened.ok()) return;
  std::string bytes;
  uint64_t frames = 0;
  const auto visit = [&](const RecordLog::Frame& frame) -> Status {
    ++frames;
    QUERN_CHECK(frame.places.size() == frame.entries.size());
    for (size_t i = 0; i < frame.entries.size(); ++i) {
      const auto& [number, content, hash] = frame.entries[i];
      QUERN_CHECK(hash == RecordLog::HashOf(content));
      QUERN_CHECK(log.Holds(frame.places[i], static_cast<uint32_t>(content.size())));
      QUERN_CHECK(log.Read(number, frame.places[i], static_cast<uint32_t>(content.size()), &bytes).ok());
      QUERN_CHECK(bytes == content);
      QUERN_CHECK(!log.Read(number + 1, frame.places[i], static_cast<uint32_t>(content.size()), &bytes).ok());
    }
    return {};
  };
  for (const uint32_t segment : log.Segments()) OneLine(log.Scan(segment, visit));
  OneLine(log.Replay({}, {}, visit));
  for (const uint32_t segment : log.Segments())
    OneLine(log.Replay({.segment = segment, .offset = kSegmentHeader}, {},
                       [](const RecordLog::Frame&) { return Status(); }));
}

void ReadTable(std::string file, bool mend) {
  if (mend && file.size() >= 56) {
    const std::string good = RecordTable().EncodeRows(1, 0, {});
    std::memcpy(file.data(), good.data(), 24);  // magic, the size of a row, the first row
    std::string covered = file.substr(0, 48) + file.substr(56);
    SetNumber(file, 48, XXH3_64bits(covered.data(), covered.size()));
  }
  const std::string path = Scratch() + "/table";
  Put(path, file);
  RecordTable table;
  RecordPlace end;
  if (!table.LoadRows(path, &end)) {
    QUERN_CHECK(table.newest() == 0);
    return;
  }
  for (uint64_t number = 1; number <= table.newest(); ++number) {
    const RecordKind& kind = table.KindOf(number);
    QUERN_CHECK(table.name(kind.run).size() < file.size());
    for (const uint32_t tag : table.tag_set(kind.tag_set)) QUERN_CHECK(table.name(tag).size() < file.size());
    QUERN_CHECK(table.Find(table.row(number).uid_high, table.row(number).uid_low) != 0);
    (void)table.Before(1, number);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  SetLogLevel(LogLevel::kError);
  if (size < 3) return 0;
  const bool mend = (data[0] & 3) != 0;
  const size_t first = data[1] | data[2] << 8;
  std::string input(reinterpret_cast<const char*>(data + 3), size - 3);
  if ((data[0] & 4) != 0) {
    ReadTable(std::move(input), mend);
    return 0;
  }
  // Two segments.
  std::string files[2] = {input.substr(0, first), input.size() > first ? input.substr(first) : std::string()};
  QUERN_CHECK(MakeDirectories(Scratch() + "/log").ok());
  for (uint32_t i = 0; i < 2; ++i) {
    if (mend) MendSegment(files[i], i + 1);
    Put(Scratch() + "/log/records-0000000" + std::to_string(i + 1) + ".data", files[i]);
  }
  ReadLog();
  return 0;
}
