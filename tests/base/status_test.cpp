#include "base/status.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace quern {
namespace {

TEST(Status, OkIsEmpty) {
  const Status ok;
  EXPECT_TRUE(ok.ok());
  EXPECT_EQ(ok.code(), StatusCode::kOk);
  EXPECT_EQ(ok.message(), "");
  EXPECT_EQ(ok.ToString(), "ok");
  EXPECT_TRUE(ok.Annotate("job").ok());
}

TEST(Status, CarriesCodeAndMessage) {
  const Status status = InvalidArgument("line 3: no such key").Annotate("job.yaml");
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.ToString(), "invalid argument: job.yaml: line 3: no such key");
  const Status copy = status;
  EXPECT_EQ(copy.message(), status.message());
}

TEST(Status, FromErrnoPicksTheCode) {
  EXPECT_EQ(FromErrno(ENOENT, "a").code(), StatusCode::kNotFound);
  EXPECT_EQ(FromErrno(ENOSPC, "a").code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(FromErrno(ENOENT, "weights.bin").message(), "weights.bin: No such file or directory");
}

Result<int> Parse(bool good) {
  if (!good) return NotFound("nothing");
  return 7;
}

Status Double(bool good, int* out) {
  QUERN_ASSIGN_OR_RETURN(const int value, Parse(good));
  QUERN_RETURN_IF_ERROR(Status());
  *out = 2 * value;
  return {};
}

TEST(Result, ValueOrReason) {
  int out = 0;
  EXPECT_TRUE(Double(true, &out).ok());
  EXPECT_EQ(out, 14);
  EXPECT_EQ(Double(false, &out).code(), StatusCode::kNotFound);
  EXPECT_EQ(out, 14);
  Result<std::unique_ptr<int>> moved(std::make_unique<int>(3));
  EXPECT_EQ(*std::move(moved).value(), 3);
}

TEST(ResultDeathTest, ValueOfAnErrorEndsTheProcess) { EXPECT_DEATH(Parse(false).value(), "not found: nothing"); }

}  // namespace
}  // namespace quern
