#include <dlfcn.h>

#include <oneapi/dnnl/dnnl.hpp>
#include <vector>

#include "tests/bench/gemm_peer.h"

namespace quern::bench {

namespace {

using dnnl::memory;

class OneDnnPeer : public GemmPeer {
 public:
  OneDnnPeer(DType dtype, int64_t m, int64_t k, int64_t n, int64_t weights)
      : engine_(dnnl::engine::kind::cpu, 0), stream_(engine_) {
    const auto type = dtype == DType::kBf16 ? memory::data_type::bf16 : memory::data_type::f32;
    const memory::desc a({m, k}, type, memory::format_tag::ab);
    const memory::desc b({k, n}, type, memory::format_tag::any);
    const memory::desc plain({k, n}, type, memory::format_tag::ab);
    const memory::desc c({m, n}, type, memory::format_tag::ab);
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), engine_);
    product_ = dnnl::matmul(description);
    a_ = memory(a, engine_);
    c_ = memory(c, engine_);
    memory source(plain, engine_);
    Fill(source, static_cast<size_t>(k * n), dtype);
    Fill(a_, static_cast<size_t>(m * k), dtype);
    for (int64_t i = 0; i < weights; ++i) {
      weights_.emplace_back(description.weights_desc(), engine_);
      dnnl::reorder(source, weights_.back()).execute(stream_, source, weights_.back());
    }
    stream_.wait();
  }

  void Run(int64_t i) override {
    product_.execute(stream_, {{DNNL_ARG_SRC, a_},
                               {DNNL_ARG_WEIGHTS, weights_[static_cast<size_t>(i) % weights_.size()]},
                               {DNNL_ARG_DST, c_}});
    stream_.wait();
  }

 private:
  static void Fill(memory& to, size_t count, DType dtype) {
    void* data = to.get_data_handle();
    for (size_t i = 0; i < count; ++i) {
      const float value = static_cast<float>(i % 61) / 61.0f - 0.5f;
      if (dtype == DType::kBf16) {
        static_cast<Bf16*>(data)[i] = Bf16(value);
      } else {
        static_cast<float*>(data)[i] = value;
      }
    }
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  dnnl::matmul product_;
  memory a_, c_;
  std::vector<memory> weights_;
};

}  // namespace

std::unique_ptr<GemmPeer> NewGemmPeer(DType dtype, int64_t m, int64_t k, int64_t n, int64_t weights) {
  return std::make_unique<OneDnnPeer>(dtype, m, k, n, weights);
}

const char* GemmPeerName() { return "oneDNN"; }

void SetGemmPeerThreads(int threads) {
  // Debian's library runs on OpenMP, which is loaded with it.
  if (auto* set = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"))) set(threads);
}

}  // namespace quern::bench
