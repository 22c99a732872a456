#include "replay/record_log.h"

#include <gtest/gtest.h>
#include <rocksdb/db.h>

#include <cstdio>
#include <filesystem>
#include <map>

#include "base/file.h"
#include "base/strings.h"
#include "proto/replay.pb.h"
#include "replay/filter.h"
#include "replay/record_table.h"
#include "replay/store.h"
#include "replay/writer.h"
#include "tests/replay/trajectories.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

namespace fs = std::filesystem;

Deadline Soon() { return Deadline::After(std::chrono::seconds(30)); }

class RecordLogTest : public ::testing::Test {
 protected:
  std::unique_ptr<RecordLog> Open() {
    auto log = std::make_unique<RecordLog>(folder_.path(), rocksdb::FileSystem::Default().get());
    const Status opened = log->Open();
    EXPECT_TRUE(opened.ok()) << opened.message();
    return log;
  }
  // Numbers of the records after `from`.
  std::vector<uint64_t> Replay(RecordLog& log, RecordPlace from = {}) {
    std::vector<uint64_t> numbers;
    const Status status = log.Replay(from, {}, [&](const RecordLog::Frame& frame) -> Status {
      EXPECT_EQ(frame.trailer, "t");
      for (size_t i = 0; i < frame.entries.size(); ++i) {
        const RecordLog::Entry& entry = frame.entries[i];
        EXPECT_EQ(entry.bytes, Bytes(entry.number));
        std::string read;
        EXPECT_TRUE(log.Read(entry.number, frame.places[i], static_cast<uint32_t>(entry.bytes.size()), &read).ok());
        EXPECT_EQ(read, entry.bytes);
        numbers.push_back(entry.number);
      }
      return {};
    });
    EXPECT_TRUE(status.ok()) << status.message();
    return numbers;
  }
  void Append(RecordLog& log, uint64_t first, uint64_t last) {
    std::vector<std::string> bytes;
    for (uint64_t n = first; n <= last; ++n) bytes.push_back(Bytes(n));
    std::vector<RecordLog::Entry> entries;
    for (uint64_t n = first; n <= last; ++n)
      entries.push_back({.number = n, .bytes = bytes[n - first], .hash = RecordLog::HashOf(bytes[n - first])});
    std::vector<RecordPlace> places;
    const Status status = log.Append(entries, "t", &places);
    ASSERT_TRUE(status.ok()) << status.message();
  }
  std::string PathOf(uint32_t segment) { return JoinPath(folder_.path(), StrFormat("records-%08u.data", segment)); }
  static std::string Bytes(uint64_t number) { return std::string(number * 37 % 500, static_cast<char>(number)); }
  TemporaryFolder folder_;
};

TEST_F(RecordLogTest, FramesComeBackInOrderOverSegments) {
  RecordPlace middle;
  {
    auto log = Open();
    EXPECT_TRUE(Replay(*log).empty());
    Append(*log, 1, 3);
    Append(*log, 4, 4);
    middle = log->end();
    log->Seal();
    Append(*log, 5, 9);
    EXPECT_EQ(Replay(*log), (std::vector<uint64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9}));
    EXPECT_EQ(log->Segments().size(), 2u);
  }
  auto log = Open();
  EXPECT_EQ(Replay(*log, middle), (std::vector<uint64_t>{5, 6, 7, 8, 9}));
  Append(*log, 10, 10);
  EXPECT_EQ(log->Segments().size(), 3u) << "files of earlier processes are left alone";
  EXPECT_EQ(Replay(*log).size(), 10u);
}

TEST_F(RecordLogTest, AFrameThatWasBrokenOffEndsTheLogAndOneInTheMiddleIsAnError) {
  std::string path;
  RecordPlace end;
  {
    auto log = Open();
    (void)Replay(*log);
    Append(*log, 1, 3);
    end = log->end();
    Append(*log, 4, 6);
    path = log->PathOf(1);
  }
  fs::resize_file(path, fs::file_size(path) - 5);
  const RecordPlace beyond{.segment = 1, .offset = end.offset + 1};
  const Status lost = Open()->Replay({}, beyond, [](const RecordLog::Frame&) { return Status(); });
  EXPECT_EQ(lost.code(), StatusCode::kDataLoss) << "it was acknowledged: " << lost.message();
  auto log = Open();
  EXPECT_EQ(Replay(*log), (std::vector<uint64_t>{1, 2, 3}));
  EXPECT_EQ(log->end().offset, end.offset);
  Append(*log, 4, 4);  // in a segment that says where the first one ended
  EXPECT_EQ(Replay(*Open()), (std::vector<uint64_t>{1, 2, 3, 4}));
  std::string bytes = *ReadFile(path);
  bytes[60] = static_cast<char>(bytes[60] ^ 1);
  ASSERT_TRUE(WriteFileAtomic(path, bytes).ok());
  log = Open();
  const Status damaged = log->Replay({}, {}, [](const RecordLog::Frame&) { return Status(); });
  EXPECT_EQ(damaged.code(), StatusCode::kDataLoss) << damaged.message();
  fs::resize_file(path, end.offset - 1);
  RecordLog shorter(folder_.path(), rocksdb::FileSystem::Default().get());
  EXPECT_EQ(shorter.Open().code(), StatusCode::kDataLoss);
  fs::remove(path);
  log = Open();
  EXPECT_EQ(log->Replay({}, {}, [](const RecordLog::Frame&) { return Status(); }).code(), StatusCode::kDataLoss);
}

// A write that failed leaves a part of a frame behind. Where the segment ended before it stands in the next one's
// header, which goes when nothing is in it.
TEST_F(RecordLogTest, WhatAFailedWriteLeftIsNoDamageWhenTheNextSegmentGoes) {
  uint32_t first = 0, moved = 0;
  const auto break_off = [&](const std::string& path) {
    const std::string bytes = *ReadFile(path);
    std::FILE* file = std::fopen(path.c_str(), "a");
    ASSERT_EQ(std::fwrite(bytes.data() + 32, 1, 50, file), 50u);
    ASSERT_EQ(std::fclose(file), 0);
  };
  {
    auto log = Open();
    Append(*log, 1, 3);
    first = log->end().segment;
    std::vector<RecordPlace> places;
    ASSERT_TRUE(log->Move({{.number = 1, .bytes = Bytes(1)}}, &places).ok());
    moved = places[0].segment;
  }
  break_off(PathOf(first));
  break_off(PathOf(moved));
  {
    auto log = Open();
    EXPECT_EQ(Replay(*log).size(), 3u);
    ASSERT_TRUE(log->Begin().ok());
    const uint32_t empty = log->end().segment;
    ASSERT_TRUE(log->Begin().ok());
    Append(*log, 4, 4);
    ASSERT_TRUE(log->Remove(empty).ok());
  }
  auto log = Open();
  std::map<uint32_t, size_t> frames;
  for (const uint32_t segment : log->Segments()) {
    const Status scanned = log->Scan(segment, [&](const RecordLog::Frame&) -> Status {
      ++frames[segment];
      return {};
    });
    EXPECT_TRUE(scanned.ok()) << scanned.message();
  }
  EXPECT_EQ(frames.size(), 3u);
  EXPECT_EQ(frames[first], 1u);
  EXPECT_EQ(frames[moved], 1u);
}

TEST(StoreLog, WhatTheIndexLostIsMadeAgainFromTheLog) {
  TemporaryFolder folder;
  const std::string directory = JoinPath(folder.path(), "replay");
  const std::string older = JoinPath(folder.path(), "older");
  uint64_t ledger = 0;
  {
    auto store = *Store::Open(directory);
    auto writer = *ReplayWriter::Open(store.get(), "w", Soon());
    const auto put = [&](int first, int last) {
      for (int i = first; i <= last; ++i)
        writer->Append(MakeTrajectory(StrCat("u", i), static_cast<float>(i)).SerializeAsString(), StrCat("u", i));
      ASSERT_TRUE(writer->Flush(Soon()).ok());
    };
    put(1, 5);
    ASSERT_TRUE(store->Backup(older).ok());
    put(3, 20);  // three uids are known already
    ledger = writer->ledger();
  }
  // The index of then with the log of now: what a power loss leaves.
  for (const auto& entry : fs::directory_iterator(directory))
    if (const fs::path to = fs::path(older) / entry.path().filename();
        entry.path().extension() == ".data" && !fs::exists(to))
      fs::copy_file(entry.path(), to);
  for (int pass = 0; pass < 2; ++pass) {
    auto store = Store::Open(older);
    ASSERT_TRUE(store.ok()) << store.status().message();
    EXPECT_EQ((*store)->watermark(), 20u);
    const auto stats = *(*store)->Stats({});
    EXPECT_EQ(stats.duplicates(), 3u + static_cast<uint64_t>(pass));  // and what each pass adds below
    ASSERT_EQ(stats.writers_size(), 1);
    EXPECT_EQ(stats.writers(0).ledger(), ledger);
    EXPECT_EQ(stats.writers(0).next_sequence(), 24u);
    const auto report = *(*store)->Verify();
    EXPECT_EQ(report.records, 20u);
    for (const std::string& problem : report.problems) ADD_FAILURE() << problem;
    EXPECT_EQ((*store)->Insert(MakeInsert({MakeTrajectory("u20")}))->duplicates(), 1u);
  }
}

TEST(StoreLog, VerifyAddsUpTheLedgersOfTheLog) {
  TemporaryFolder folder;
  {
    auto store = *Store::Open(folder.path());
    auto writer = *ReplayWriter::Open(store.get(), "w", Soon());
    for (int i = 0; i < 3; ++i) writer->Append(MakeTrajectory(StrCat("u", i)).SerializeAsString(), StrCat("u", i));
    ASSERT_TRUE(writer->Flush(Soon()).ok());
    EXPECT_TRUE(store->Verify()->problems.empty());
  }
  {  // a frame that goes on from another ledger, and ends with one that its record does not lead to
    RecordLog log(folder.path(), rocksdb::FileSystem::Default().get());
    ASSERT_TRUE(log.Open().ok());
    ASSERT_TRUE(log.Replay({}, {}, [](const RecordLog::Frame&) { return Status(); }).ok());
    v1::LogTrailer trailer;
    v1::LoggedRequest& request = *trailer.add_requests();
    request.set_writer("w");
    request.set_ledger(1);
    request.add_numbers(0);
    request.add_known("u1");
    v1::WriterState& state = *trailer.add_writers();
    state.set_writer("w");
    state.set_epoch(1);
    state.set_next_sequence(5);
    state.set_ledger(77);
    std::vector<RecordPlace> places;
    ASSERT_TRUE(log.Append({}, trailer.SerializeAsString(), &places).ok());
  }
  const auto report = *(*Store::Open(folder.path()))->Verify();
  EXPECT_EQ(report.records, 3u);
  ASSERT_EQ(report.problems.size(), 3u);
  EXPECT_NE(report.problems[0].find("its ledger breaks off"), std::string::npos) << report.problems[0];
  EXPECT_NE(report.problems[1].find("do not add up to its ledger"), std::string::npos) << report.problems[1];
  EXPECT_NE(report.problems[2].find("do not agree on its ledger"), std::string::npos) << report.problems[2];
}

TEST(StoreLog, AStoreOfTheOldFormatIsRefused) {
  TemporaryFolder folder;
  rocksdb::Options options;
  options.create_if_missing = true;
  rocksdb::DB* db = nullptr;
  ASSERT_TRUE(rocksdb::DB::Open(options, folder.path(), &db).ok());
  rocksdb::ColumnFamilyHandle* records = nullptr;
  ASSERT_TRUE(db->CreateColumnFamily({}, "records", &records).ok());
  (void)db->DestroyColumnFamilyHandle(records);
  delete db;
  const Status status = Store::Open(folder.path()).status();
  EXPECT_EQ(status.code(), StatusCode::kUnimplemented) << status.message();
  EXPECT_NE(status.message().find("older format"), std::string::npos) << status.message();
}

TEST(StoreLog, RequestsAreReadAsTheyCame) {
  TemporaryFolder folder;
  auto store = *Store::Open(JoinPath(folder.path(), "replay"));
  v1::InsertRequest request = MakeInsert({MakeTrajectory("a"), MakeTrajectory("b")});
  const std::string bytes = request.SerializeAsString();
  for (size_t cut = 1; cut < bytes.size(); ++cut) {
    // Every beginning is either no request or a shorter one of whole records.
    const auto reply = store->InsertBytes(std::string_view(bytes).substr(0, cut));
    if (reply.ok()) {
      EXPECT_LE(reply->inserted() + reply->duplicates(), 1u) << cut;
    }
  }
  const auto reply = store->InsertBytes(bytes);
  ASSERT_TRUE(reply.ok()) << reply.status().message();
  EXPECT_EQ(reply->inserted() + reply->duplicates(), 2u);
  EXPECT_EQ(store->watermark(), 2u);
  request.clear_trajectories();
  for (int i = 0; i < 5000; ++i) request.add_trajectories("");
  const Status many = store->InsertBytes(request.SerializeAsString()).status();
  EXPECT_EQ(many.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(many.message().find("more than 4096 trajectories"), std::string::npos) << many.message();
}

v1::Trajectory Numbered(int i) {
  v1::Trajectory t;
  t.set_uid(StrCat("u", i));
  t.set_run(i % 2 == 0 ? "one" : "two");
  if (i % 3 == 0) t.add_tags("third");
  if (i % 6 == 0) t.add_tags("a sixth");
  t.set_task(StrCat("task ", i / 10));
  t.set_generation_depth(static_cast<uint32_t>(i / 20'000));
  t.set_episode_return(i);
  return t;
}

TEST(RecordTable, AFileOfItIsReadBackOrRefused) {
  TemporaryFolder folder;
  const std::string path = JoinPath(folder.path(), "table");
  constexpr int kRows = 70'000;  // more than one chunk
  RecordTable table;
  for (int i = 1; i <= kRows; ++i) table.Append(MakeRow(Numbered(i), 10));
  table.SetPruned(60'007);
  const RecordPlace end{.segment = 3, .offset = 99};
  const std::string whole = table.EncodeRows(1001, kRows, end);
  ASSERT_TRUE(WriteFileAtomic(path, whole).ok());
  RecordTable read;
  RecordPlace found;
  EXPECT_FALSE(read.LoadRows(path, &found)) << "the rows before are not there";
  // Names that the file does not have, and in another order.
  for (int i = 1000; i >= 1; --i) read.Append(MakeRow(Numbered(i), 10));
  ASSERT_TRUE(read.LoadRows(path, &found));
  EXPECT_EQ(found, end);
  ASSERT_EQ(read.newest(), table.newest());
  for (int i = 1001; i <= kRows; i += 13) {
    const auto n = static_cast<uint64_t>(i);
    EXPECT_TRUE(read.Agrees(n, MakeRow(Numbered(i), 10))) << i;
    EXPECT_FALSE(read.Agrees(n, MakeRow(Numbered(i + 1), 10))) << i;
    EXPECT_EQ(read.Find(StrCat("u", i)), n);
    EXPECT_EQ(read.row(n).pruned, n == 60'007);
  }
  EXPECT_EQ(read.Find("u70001"), 0u);
  EXPECT_EQ(read.EncodeRows(1001, kRows, end), whole);

  for (const size_t place : {size_t{0}, size_t{12}, size_t{50}, whole.size() / 2, whole.size() - 1}) {
    std::string damaged = whole;
    damaged[place] = static_cast<char>(damaged[place] ^ 4);
    ASSERT_TRUE(WriteFileAtomic(path, damaged).ok());
    RecordTable first;
    for (int i = 1; i <= 1000; ++i) first.Append(MakeRow(Numbered(i), 10));
    EXPECT_FALSE(first.LoadRows(path, &found)) << place;
    EXPECT_EQ(first.newest(), 1000u);
  }
  EXPECT_FALSE(read.LoadRows(path + ".none", &found));
}

TEST(RecordTable, FiltersPassOverZonesAndMissNothing) {
  RecordTable table;
  for (int i = 1; i <= 30'000; ++i) table.Append(MakeRow(Numbered(i), 10));
  std::vector<v1::Filter> filters(7);
  filters[0].set_task("task 1234");
  filters[1].set_task("no such task");
  filters[2].set_min_return(20'000.5);
  filters[2].set_max_return(20'002.5);
  filters[3].set_min_depth(1);
  filters[3].add_tags("third");
  filters[4].set_run("one");
  filters[4].add_without_tags("a sixth");
  filters[5].set_run("nobody");
  for (const v1::Filter& wanted : filters) {
    const RowFilter filter(wanted, table);
    std::vector<uint64_t> expected, up, down;
    for (uint64_t n = 1; n <= table.newest(); ++n)
      if (filter.Matches(table.row(n))) expected.push_back(n);
    for (uint64_t n = 0; (n = filter.FirstMatch(n + 1, table.newest())) != 0;) up.push_back(n);
    for (uint64_t n = table.newest() + 1; n > 1 && (n = filter.LastMatch(1, n - 1)) != 0;) down.push_back(n);
    EXPECT_EQ(up, expected) << wanted.ShortDebugString();
    EXPECT_EQ(down, std::vector<uint64_t>(expected.rbegin(), expected.rend())) << wanted.ShortDebugString();
  }
  EXPECT_EQ(RowFilter(filters[0], table).FirstMatch(1, 30'000), 12'340u);
}

// What a killed process leaves: a copy of the files while the store is open.
std::string Killed(const TemporaryFolder& folder, const std::string& directory) {
  const std::string copy = JoinPath(folder.path(), "killed");
  fs::remove_all(copy);
  fs::copy(directory, copy);
  return copy;
}

TEST(StoreRows, OpeningReadsThemOrTheLog) {
  TemporaryFolder folder;
  const std::string directory = JoinPath(folder.path(), "replay");
  const auto put = [](Store& store, int first, int last) {
    v1::InsertRequest request;
    for (int i = first; i <= last; ++i)
      request.add_trajectories(MakeTrajectory(StrCat("u", i), static_cast<float>(i)).SerializeAsString());
    ASSERT_TRUE(store.Insert(request).ok());
  };
  const auto expect_whole = [](const std::string& where, uint64_t records) {
    auto store = Store::Open(where);
    ASSERT_TRUE(store.ok()) << store.status().message();
    EXPECT_EQ((*store)->watermark(), records);
    const auto report = (*store)->Verify();
    EXPECT_EQ(report->records, records);
    for (const std::string& problem : report->problems) ADD_FAILURE() << problem;
  };
  std::string rows;
  {
    auto store = *Store::Open(directory);
    put(*store, 1, 100);
    expect_whole(Killed(folder, directory), 100);  // no file of rows yet
    ASSERT_TRUE(store->Compact().ok());
    rows = JoinPath(directory, "rows-000000000001.table");
    ASSERT_TRUE(PathExists(rows));
    put(*store, 101, 150);
    expect_whole(Killed(folder, directory), 150);  // one, and the rest of the log
  }
  expect_whole(directory, 150);
  std::string bytes = *ReadFile(rows);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  ASSERT_TRUE(WriteFileAtomic(rows, bytes).ok());
  expect_whole(directory, 150);  // made again from the log
  // What was pruned is in no log: without its rows the store does not open, and nothing comes back.
  {
    auto store = *Store::Open(directory);
    PruneOptions options;
    options.max_bytes = 1;
    ASSERT_EQ(store->Prune(options)->records, 150u);
    put(*store, 151, 151);
  }
  {
    auto store = *Store::Open(directory);
    EXPECT_EQ(store->watermark(), 151u);
    EXPECT_EQ(store->Insert(MakeInsert({MakeTrajectory("u7")}))->duplicates(), 1u);
    EXPECT_EQ(store->Stats({})->records(), 1u);
    EXPECT_TRUE(store->Verify()->problems.empty());
  }
  ASSERT_TRUE(PathExists(rows));
  fs::remove(rows);
  const Status refused = Store::Open(directory).status();
  EXPECT_EQ(refused.code(), StatusCode::kDataLoss);
  EXPECT_NE(refused.message().find("rows-000000000001.table"), std::string::npos) << refused.message();
}

}  // namespace
}  // namespace quern
