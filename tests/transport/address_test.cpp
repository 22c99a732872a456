#include "transport/address.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "base/file.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

TEST(Address, KindsAndMistakes) {
  EXPECT_EQ(*ParseAddress("ipc:///tmp/a/b.sock"), AddressKind::kIpc);
  EXPECT_EQ(*ParseAddress("tcp://127.0.0.1:*"), AddressKind::kTcp);
  EXPECT_EQ(*ParseAddress("inproc://store"), AddressKind::kInproc);
  for (const char* bad : {"", "store", "http://x", "ipc://", "inproc://", "tcp://nohost"})
    EXPECT_FALSE(ParseAddress(bad).ok()) << bad;
  EXPECT_TRUE(IsAddress("tcp://h:1"));
  EXPECT_FALSE(IsAddress("runs/one/replay"));
}

TEST(Address, APathTooLongForASocketIsRefusedWithItsLength) {
  const std::string fits = "ipc:///" + std::string(106, 'a');
  EXPECT_TRUE(ParseAddress(fits).ok());
  const Status status = ParseAddress(fits + "a").status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("108 bytes"), std::string::npos) << status.message();
}

TEST(Address, IpcAddressUsesTheFolderOrAStableShortOne) {
  TemporaryFolder folder;
  const std::string sockets = JoinPath(folder.path(), "sockets");
  EXPECT_EQ(*IpcAddress(sockets, "store"), "ipc://" + sockets + "/store.sock");
  struct stat info;
  ASSERT_EQ(stat(sockets.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);

  const std::string deep = JoinPath(folder.path(), std::string(120, 'd'));
  const auto first = IpcAddress(deep, "store");
  ASSERT_TRUE(first.ok()) << first.status().message();
  EXPECT_TRUE(ParseAddress(*first).ok());
  EXPECT_EQ(*first, *IpcAddress(deep, "store"));
  EXPECT_NE(*first, *IpcAddress(deep + "2", "store"));
  const auto folder_of = [](const std::string& address) { return address.substr(6, address.rfind('/') - 6); };
  EXPECT_TRUE(RemoveTree(folder_of(*first)).ok());
  EXPECT_TRUE(RemoveTree(folder_of(*IpcAddress(deep + "2", "store"))).ok());
}

TEST(Address, AnOpenFolderIsRefused) {
  TemporaryFolder folder;
  const std::string open_folder = JoinPath(folder.path(), "open");
  ASSERT_EQ(mkdir(open_folder.c_str(), 0700), 0);
  ASSERT_EQ(chmod(open_folder.c_str(), 0755), 0);
  const Status status = PrepareIpcFolder("ipc://" + open_folder + "/a.sock");
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_NE(status.message().find("chmod 700"), std::string::npos);
}

}  // namespace
}  // namespace quern
