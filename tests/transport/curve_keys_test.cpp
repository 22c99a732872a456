#include "transport/curve_keys.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "base/file.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

TEST(CurveKeys, CreatedOnceAndPrivate) {
  TemporaryFolder folder;
  const std::string keys_folder = JoinPath(folder.path(), "keys");
  const auto made = LoadOrCreateKeys(keys_folder, "store");
  ASSERT_TRUE(made.ok()) << made.status().message();
  EXPECT_EQ(made->public_key.size(), 40u);
  EXPECT_EQ(made->secret_key.size(), 40u);
  const auto again = LoadOrCreateKeys(keys_folder, "store");
  EXPECT_EQ(again->secret_key, made->secret_key);
  struct stat info;
  ASSERT_EQ(stat(JoinPath(keys_folder, "store.secret").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_EQ(*LoadPublicKey(keys_folder, "store"), made->public_key);

  const auto other = LoadOrCreateKeys(keys_folder, "actor");
  EXPECT_NE(other->secret_key, made->secret_key);
  EXPECT_EQ(LoadPublicKeys(keys_folder)->size(), 2u);
}

TEST(CurveKeys, BadFilesAreRefused) {
  TemporaryFolder folder;
  ASSERT_TRUE(LoadOrCreateKeys(folder.path(), "store").ok());
  const std::string secret = JoinPath(folder.path(), "store.secret");
  ASSERT_EQ(chmod(secret.c_str(), 0644), 0);
  EXPECT_NE(LoadKeys(folder.path(), "store").status().message().find("chmod 600"), std::string::npos);
  ASSERT_TRUE(WriteFileAtomic(secret, "not a key\nneither\n").ok());
  ASSERT_EQ(chmod(secret.c_str(), 0600), 0);
  EXPECT_NE(LoadKeys(folder.path(), "store").status().message().find("not a CURVE key"), std::string::npos);
  EXPECT_FALSE(LoadKeys(folder.path(), "nobody").ok());
}

}  // namespace
}  // namespace quern
