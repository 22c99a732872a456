#pragma once

#include <memory>
#include <string>
#include <vector>

#include "compute/cpu/cpu_ops.h"
#include "tests/compute/test_tensors.h"

namespace quern {

// An instruction set of this machine and the dtype of activations.
struct CpuCase {
  cpu::Isa isa;
  DType act;
};

inline std::vector<CpuCase> CpuCases() {
  std::vector<CpuCase> out;
  for (const cpu::Isa isa : {cpu::Isa::kScalar, cpu::Isa::kAvx2, cpu::Isa::kAvx512, cpu::Isa::kAvx512Bf16})
    if (cpu::IsaAvailable(isa))
      for (const DType act : {DType::kF32, DType::kBf16}) out.push_back({isa, act});
  return out;
}

inline std::string CpuCaseName(const ::testing::TestParamInfo<CpuCase>& info) {
  return std::string(cpu::IsaName(info.param.isa)) + "_" + DTypeName(info.param.act);
}

// The CPU backend beside the reference.
class CpuOpsTest : public ::testing::TestWithParam<CpuCase> {
 protected:
  DType act() const { return GetParam().act; }
  // Of an output in the activation dtype: for bf16 one rounding to 8 significant bits and what fp32 adds.
  double relative() const { return act() == DType::kBf16 ? 0x1.01p-8 : 1e-5; }

  ThreadPool pool_{2};
  CpuOps cpu_{&pool_, GetParam().isa};
  std::unique_ptr<Ops> reference_ = NewReferenceOps();
};

inline std::vector<int32_t> RandomIds(int64_t count, int64_t limit, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> out;
  for (int64_t i = 0; i < count; ++i) out.push_back(static_cast<int32_t>(random.Below(static_cast<uint64_t>(limit))));
  return out;
}

}  // namespace quern
