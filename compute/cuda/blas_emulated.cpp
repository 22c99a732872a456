#include "compute/cuda/blas.h"
#include "compute/cuda/emulator.h"
#include "compute/fp8.h"

namespace quern::cuda {

namespace {

float At(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kF32: return static_cast<const float*>(data)[i];
    case DType::kBf16: return static_cast<float>(static_cast<const Bf16*>(data)[i]);
    default: return Fp8ToFloat(static_cast<const uint8_t*>(data)[i], dtype);
  }
}

class EmulatedBlas : public Blas {
 public:
  bool has_fp8() const override { return true; }
  bool has_row_scales() const override { return true; }
  void Multiply(const Product& product, bool) override {
    emulator::Queue([product] { Compute(product); });
  }

 private:
  static void Compute(const Product& p) {
    const emulator::DeviceAccess access;
    const bool fp8 = IsFp8(p.a_dtype);
    QUERN_CHECK(fp8 == IsFp8(p.b_dtype));
    QUERN_CHECK(p.a_scale_rows == p.b_scale_outputs);
    QUERN_CHECK(p.bias == nullptr || p.bias_dtype == (fp8 ? DType::kBf16 : p.d_dtype));
    QUERN_CHECK(!fp8 || (p.a_scale != nullptr && p.b_scale != nullptr && !p.a_transposed && !p.b_transposed &&
                         p.k % 16 == 0 && p.n % 16 == 0 && p.a_stride % 16 == 0 && p.b_stride % 16 == 0));
    for (int64_t r = 0; r < p.rows; ++r) {
      for (int64_t c = 0; c < p.n; ++c) {
        float sum = 0;
        for (int64_t i = 0; i < p.k; ++i)
          sum += At(p.a, p.a_dtype, p.a_transposed ? i * p.a_stride + r : r * p.a_stride + i) *
                 At(p.b, p.b_dtype, p.b_transposed ? i * p.b_stride + c : c * p.b_stride + i);
        if (fp8) sum *= p.a_scale[p.a_scale_rows ? r : 0] * p.b_scale[p.b_scale_outputs ? c : 0];
        const int64_t at = r * p.d_stride + c;
        if (p.accumulate) sum += At(p.d, p.d_dtype, at);
        if (p.bias != nullptr) sum += At(p.bias, p.bias_dtype, c);
        if (p.d_dtype == DType::kF32) {
          static_cast<float*>(p.d)[at] = sum;
        } else {
          static_cast<Bf16*>(p.d)[at] = Bf16(sum);
        }
      }
    }
  }
};

}  // namespace

BlasResult NewBlas(Runtime&) { return {std::make_unique<EmulatedBlas>(), {}}; }

}  // namespace quern::cuda
