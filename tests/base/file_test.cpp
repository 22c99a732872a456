#include "base/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "base/strings.h"
#include "tests/shared_data.h"

namespace quern {
namespace {

TEST(File, WriteReadMap) {
  const ScratchFolder folder;
  const std::string path = folder.File("a.bin");
  const std::string contents("a\0b\n", 4);
  ASSERT_TRUE(WriteFileAtomic(path, contents).ok());
  EXPECT_EQ(*ReadFile(path), contents);
  auto map = MappedFile::Open(path);
  ASSERT_TRUE(map.ok()) << map.status().ToString();
  ASSERT_EQ(map->bytes().size(), 4u);
  EXPECT_EQ(map->bytes()[2], 'b');
  const MappedFile moved = std::move(*map);
  EXPECT_EQ(moved.bytes()[0], 'a');

  ASSERT_TRUE(WriteFileAtomic(path, "new").ok());
  EXPECT_EQ(*ReadFile(path), "new");
  EXPECT_EQ(moved.bytes()[0], 'a');  // a mapping keeps the file it was made of
  EXPECT_EQ(ListDirectory(folder.path()).value(), std::vector<std::string>{"a.bin"});
}

TEST(File, EmptyFileMaps) {
  const ScratchFolder folder;
  ASSERT_TRUE(WriteFileAtomic(folder.File("empty"), "").ok());
  const auto map = MappedFile::Open(folder.File("empty"));
  ASSERT_TRUE(map.ok());
  EXPECT_TRUE(map->bytes().empty());
}

// A writer that fails leaves the old file whole and nothing else behind.
TEST(File, FailedWriteChangesNothing) {
  const ScratchFolder folder;
  const std::string path = folder.File("a");
  ASSERT_TRUE(WriteFileAtomic(path, "old").ok());
  const Status status = WriteFileAtomic(path, [](const WriteSink& sink) {
    QUERN_RETURN_IF_ERROR(sink("half", 4));
    return DataLoss("source ended early");
  });
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_EQ(*ReadFile(path), "old");
  EXPECT_EQ(ListDirectory(folder.path()).value(), std::vector<std::string>{"a"});
}

TEST(File, StreamedWriteIsOneFile) {
  const ScratchFolder folder;
  const std::string piece(100000, 'x');
  ASSERT_TRUE(WriteFileAtomic(folder.File("big"), [&](const WriteSink& sink) {
                for (int i = 0; i < 5; ++i) QUERN_RETURN_IF_ERROR(sink(piece.data(), piece.size()));
                return Status();
              }).ok());
  EXPECT_EQ(ReadFile(folder.File("big"))->size(), 500000u);
}

// Longer than the pieces in which it goes to the disk, in sinks shorter and longer than those.
TEST(File, StreamedWriteOfManyPieces) {
  const ScratchFolder folder;
  std::string contents(23'000'007, '\0');
  for (size_t i = 0; i < contents.size(); ++i) contents[i] = static_cast<char>(i * 2654435761u >> 13);
  const Status written = WriteFileAtomic(folder.File("long"), [&](const WriteSink& sink) -> Status {
    size_t done = 0;
    for (const size_t size : {size_t{1}, size_t{9'000'000}, size_t{3'999'999}, size_t{0}, size_t{10'000'007}}) {
      QUERN_RETURN_IF_ERROR(sink(contents.data() + done, size));
      done += size;
    }
    return done == contents.size() ? Status() : Internal(StrCat(done));
  });
  ASSERT_TRUE(written.ok()) << written.ToString();
  EXPECT_TRUE(*ReadFile(folder.File("long")) == contents);
}

TEST(File, ErrorsNameThePath) {
  const ScratchFolder folder;
  const std::string missing = folder.File("missing");
  EXPECT_EQ(ReadFile(missing).status().code(), StatusCode::kNotFound);
  EXPECT_NE(ReadFile(missing).status().message().find(missing), std::string::npos);
  EXPECT_EQ(MappedFile::Open(missing).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(MappedFile::Open(folder.path()).status().code(), StatusCode::kInvalidArgument);
  EXPECT_FALSE(WriteFileAtomic(folder.File("no/such/folder"), "x").ok());
  EXPECT_FALSE(ListDirectory(missing).ok());
}

TEST(File, Folders) {
  const ScratchFolder folder;
  const std::string deep = JoinPath(folder.path(), "a/b/c");
  ASSERT_TRUE(MakeDirectories(deep).ok());
  ASSERT_TRUE(MakeDirectories(deep).ok());
  EXPECT_TRUE(PathExists(deep));
  ASSERT_TRUE(WriteFileAtomic(JoinPath(deep, "f"), "x").ok());
  ASSERT_TRUE(RemoveTree(JoinPath(folder.path(), "a")).ok());
  EXPECT_FALSE(PathExists(deep));
  EXPECT_GT(DiskFreeBytes(folder.path()).value(), 0u);
}

}  // namespace
}  // namespace quern
