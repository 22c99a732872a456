#include "compute/device.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "base/log.h"
#include "base/strings.h"
#include "compute/cpu/cpu_ops.h"
#include "compute/cuda/cuda_device.h"

namespace quern {

namespace {

constexpr const char* kGpu = "cuda";
constexpr size_t kMostDigits = 4;
constexpr int kLeastCapability = 80;

// The number of "cuda" or "cuda:N"; -1: something else.
int GpuNumber(const std::string& word) {
  if (word == kGpu) return 0;
  const std::string prefix = StrCat(kGpu, ":");
  if (!word.starts_with(prefix)) return -1;
  const std::string digits = word.substr(prefix.size());
  const auto is_digit = [](unsigned char c) { return std::isdigit(c) != 0; };
  if (digits.empty() || digits.size() > kMostDigits || !std::all_of(digits.begin(), digits.end(), is_digit)) return -1;
  return std::atoi(digits.c_str());
}

}  // namespace

bool IsDeviceWord(const std::string& word) { return word == "auto" || word == "cpu" || GpuNumber(word) >= 0; }

Result<Device> ChooseDevice(const std::string& word, int64_t share) {
  if (!IsDeviceWord(word)) return InvalidArgument(StrCat("device '", word, "': auto, cpu, cuda or cuda:N is meant"));
  Device cpu{.gpu = -1, .name = "the CPU", .note = {}};
  if (word == "cpu") return cpu;
  const bool any = word == "auto";
  const CudaDevices found = FindCudaDevices();
  const auto count = static_cast<int64_t>(found.devices.size());
  if (count == 0) {
    if (any) return cpu;
    return InvalidArgument(StrCat("device ", word, ": no GPU: ", found.why_none));
  }
  const int64_t asked = any ? 0 : GpuNumber(word);
  if (asked >= count)
    return InvalidArgument(
        StrCat("device ", word, ": the last GPU is cuda:", count - 1, " (", found.devices.back().name, ")"));
  const auto number = static_cast<int>((asked + share) % count);
  const CudaDevice& device = found.devices[static_cast<size_t>(number)];
  if (device.capability < kLeastCapability) {
    const std::string why = StrFormat("GPU %d (%s) has compute capability %d.%d; 8.0 or newer is needed", number,
                                      device.name.c_str(), device.capability / 10, device.capability % 10);
    if (!any) return InvalidArgument(StrCat("device ", word, ": ", why));
    cpu.note = why;
    return cpu;
  }
  return Device{.gpu = number, .name = StrCat("GPU ", number, " (", device.name, ")"), .note = {}};
}

Result<std::unique_ptr<Ops>> NewOps(const std::string& device, ThreadPool* pool, int64_t share) {
  QUERN_ASSIGN_OR_RETURN(Device chosen, ChooseDevice(device, share));
  if (chosen.gpu >= 0) {
    Result<std::unique_ptr<Ops>> ops = NewCudaOps(chosen.gpu, /*strict=*/true, pool);
    if (ops.ok()) {
      LogInfo(StrCat("computing on ", chosen.name));
      return ops;
    }
    if (device != "auto") return ops.status().Annotate(StrCat("device ", device));
    chosen.note = StrCat(chosen.name, ": ", ops.status().message());
  }
  if (!chosen.note.empty()) LogWarning(StrCat(chosen.note, "; computing on the CPU"));
  return std::unique_ptr<Ops>(NewCpuOps(pool));
}

}  // namespace quern
