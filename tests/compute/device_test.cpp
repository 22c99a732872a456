#include "compute/device.h"

#include <gtest/gtest.h>

#include "compute/cuda/cuda_device.h"

namespace quern {
namespace {

TEST(Device, Words) {
  for (const char* word : {"auto", "cpu", "cuda", "cuda:0", "cuda:12"}) EXPECT_TRUE(IsDeviceWord(word)) << word;
  for (const char* word : {"", "gpu", "Cuda", "cuda:", "cuda:-1", "cuda:1x", "cuda:99999", "cuda0"})
    EXPECT_FALSE(IsDeviceWord(word)) << word;
}

TEST(Device, TheCpuIsAlwaysThere) {
  ThreadPool pool(1);
  const auto ops = NewOps("cpu", &pool, 5);
  ASSERT_TRUE(ops.ok());
  EXPECT_STREQ((*ops)->name(), "cpu");
  EXPECT_EQ((*ops)->memory(), nullptr);
  EXPECT_EQ(ChooseDevice("cpu")->gpu, -1);
  EXPECT_EQ(ChooseDevice("tpu").status().message(), "device 'tpu': auto, cpu, cuda or cuda:N is meant");
}

TEST(Device, WithoutAGpuAutoIsTheCpuAndCudaAnErrorThatSaysWhy) {
  const CudaDevices found = FindCudaDevices();
  if (!found.devices.empty()) GTEST_SKIP() << found.devices[0].name;
  EXPECT_FALSE(found.why_none.empty());
  ThreadPool pool(1);
  const auto any = NewOps("auto", &pool);
  ASSERT_TRUE(any.ok());
  EXPECT_STREQ((*any)->name(), "cpu");
  for (const char* word : {"cuda", "cuda:1"}) {
    const auto ops = NewOps(word, &pool);
    ASSERT_FALSE(ops.ok());
    EXPECT_EQ(ops.status().message(), std::string("device ") + word + ": no GPU: " + found.why_none);
  }
}

}  // namespace
}  // namespace quern
