#include <cublasLt.h>
#include <dlfcn.h>

#include <array>
#include <cstdlib>
#include <map>
#include <vector>

#include "base/log.h"
#include "base/strings.h"
#include "compute/cuda/blas.h"
#include "compute/cuda/packed_size.h"

// Products by cuBLASLt, which is looked for when the program runs. It thinks in columns: d by rows is d^T by columns,
// so its left operand is b and its right one a.

namespace quern::cuda {

namespace {

#define QUERN_LT_FUNCTIONS(X)             \
  X(cublasLtCreate)                       \
  X(cublasLtDestroy)                      \
  X(cublasLtGetVersion)                   \
  X(cublasLtMatmul)                       \
  X(cublasLtMatmulAlgoCheck)              \
  X(cublasLtMatmulAlgoGetHeuristic)       \
  X(cublasLtMatmulDescCreate)             \
  X(cublasLtMatmulDescDestroy)            \
  X(cublasLtMatmulDescSetAttribute)       \
  X(cublasLtMatmulPreferenceCreate)       \
  X(cublasLtMatmulPreferenceDestroy)      \
  X(cublasLtMatmulPreferenceSetAttribute) \
  X(cublasLtMatrixLayoutCreate)           \
  X(cublasLtMatrixLayoutDestroy)

struct Library {
#define QUERN_MEMBER(name) decltype(&::name) name = nullptr;
  QUERN_LT_FUNCTIONS(QUERN_MEMBER)
#undef QUERN_MEMBER
};

constexpr int kMajor = CUBLAS_VER_MAJOR;
constexpr auto kWorkspace = static_cast<size_t>(kProductWorkspace);
constexpr int64_t kStrictRows = 1024;  // what a strict product's algorithm is chosen for

// Never closed: handles of it may outlive everything else.
const Library* FindLibrary(std::string& error) {
  static std::string failure;
  static const Library* const library = []() -> const Library* {
    const std::string name = StrCat("libcublasLt.so.", kMajor);
    std::vector<std::string> places = {name};
    if (const char* home = std::getenv("CUDA_HOME")) places.push_back(StrCat(home, "/lib64/", name));
    places.push_back("/usr/local/cuda/lib64/" + name);
    void* handle = nullptr;
    for (const std::string& place : places) {
      handle = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (handle != nullptr) break;
    }
    if (handle == nullptr) {
      failure = name + " cannot be loaded; put CUDA's libraries into LD_LIBRARY_PATH";
      return nullptr;
    }
    static Library out;
#define QUERN_LOAD(name)                                                 \
  out.name = reinterpret_cast<decltype(out.name)>(dlsym(handle, #name)); \
  if (out.name == nullptr) failure = "libcublasLt has no " #name;
    QUERN_LT_FUNCTIONS(QUERN_LOAD)
#undef QUERN_LOAD
    return failure.empty() ? &out : nullptr;
  }();
  error = failure;
  return library;
}

void Check(cublasStatus_t status, const char* what) {
  QUERN_CHECK(status == CUBLAS_STATUS_SUCCESS, StrCat("cuBLASLt: ", what, " gives status ", static_cast<int>(status)));
}

cudaDataType_t TypeOf(DType dtype) {
  switch (dtype) {
    case DType::kF32: return CUDA_R_32F;
    case DType::kBf16: return CUDA_R_16BF;
    case DType::kE4M3: return CUDA_R_8F_E4M3;
    case DType::kE5M2: return CUDA_R_8F_E5M2;
    default: QUERN_CHECK(false, DTypeName(dtype));
  }
  return CUDA_R_32F;
}

// Largest power of two up to 256 that divides an address.
uint32_t Alignment(const void* data) {
  const auto at = reinterpret_cast<uintptr_t>(data);
  uint32_t out = 256;
  while (at % out != 0) out /= 2;
  return out;
}

class BlasLt : public Blas {
 public:
  BlasLt(const Library& library, Runtime& runtime) : lt_(library), runtime_(runtime) {
    Check(lt_.cublasLtCreate(&handle_), "starting");
    Check(lt_.cublasLtMatmulPreferenceCreate(&preference_), "a preference");
    workspace_ = runtime_.New(static_cast<int64_t>(kWorkspace));
    Prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspace);
  }
  BlasLt(const BlasLt&) = delete;
  BlasLt& operator=(const BlasLt&) = delete;
  ~BlasLt() override {
    runtime_.Wait();
    for (auto& [key, plan] : plans_) Destroy(plan);
    runtime_.Delete(workspace_);
    lt_.cublasLtMatmulPreferenceDestroy(preference_);
    lt_.cublasLtDestroy(handle_);
  }

  bool has_fp8() const override { return runtime_.capability() >= 89; }
  // Outer vector scaling: compute capability 9.0 alone, from cuBLAS 12.9 on.
  bool has_row_scales() const override { return runtime_.capability() == 90 && lt_.cublasLtGetVersion() >= 120900; }

  void Multiply(const Product& p, bool strict) override {
    const Key key = KeyOf(p, strict);
    auto found = plans_.find(key);
    if (found == plans_.end()) found = plans_.emplace(key, NewPlan(p, strict)).first;
    Plan& plan = found->second;
    SetPointers(plan, p);
    const float one = 1, beta = p.accumulate ? 1.0f : 0.0f;
    Check(lt_.cublasLtMatmul(handle_, plan.product, &one, p.b, plan.left, p.a, plan.right, &beta, p.d, plan.result, p.d,
                             plan.result, &plan.algorithm, workspace_, kWorkspace, runtime_.stream()),
          "a product");
  }

 private:
  struct Plan {
    cublasLtMatmulDesc_t product = nullptr;
    cublasLtMatrixLayout_t left = nullptr, right = nullptr, result = nullptr;
    cublasLtMatmulAlgo_t algorithm = {};
  };
  using Key = std::array<int64_t, 15>;

  static Key KeyOf(const Product& p, bool strict) {
    const int64_t flags = p.a_transposed | p.b_transposed << 1 | p.accumulate << 2 | (p.bias != nullptr) << 3 |
                          p.a_scale_rows << 4 | p.b_scale_outputs << 5 | (p.a_scale != nullptr) << 6 | strict << 7;
    return {p.rows,
            p.n,
            p.k,
            p.a_stride,
            p.b_stride,
            p.d_stride,
            static_cast<int64_t>(p.a_dtype),
            static_cast<int64_t>(p.b_dtype),
            static_cast<int64_t>(p.d_dtype),
            static_cast<int64_t>(p.bias_dtype),
            flags,
            Alignment(p.a),
            Alignment(p.b),
            Alignment(p.d),
            p.bias != nullptr ? Alignment(p.bias) : 0};
  }

  template <typename T>
  void Prefer(cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
    Check(lt_.cublasLtMatmulPreferenceSetAttribute(preference_, attribute, &value, sizeof(value)), "a preference");
  }
  template <typename T>
  void Set(const Plan& plan, cublasLtMatmulDescAttributes_t attribute, const T& value) {
    Check(lt_.cublasLtMatmulDescSetAttribute(plan.product, attribute, &value, sizeof(value)), "an attribute");
  }

  void SetPointers(const Plan& plan, const Product& p) {
    if (p.bias != nullptr) Set(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
    if (p.a_scale == nullptr) return;
    Set(plan, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, p.b_scale);
    Set(plan, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, p.a_scale);
  }

  cublasLtMatrixLayout_t Layout(DType dtype, int64_t rows, int64_t cols, int64_t stride) {
    cublasLtMatrixLayout_t out = nullptr;
    Check(lt_.cublasLtMatrixLayoutCreate(&out, TypeOf(dtype), static_cast<uint64_t>(rows), static_cast<uint64_t>(cols),
                                         stride),
          "a layout");
    return out;
  }

  // Everything but the algorithm, for `rows` rows.
  Plan Describe(const Product& p, int64_t rows) {
    Plan plan;
    Check(lt_.cublasLtMatmulDescCreate(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a description");
    const cublasOperation_t plain = CUBLAS_OP_N, turned = CUBLAS_OP_T;
    Set(plan, CUBLASLT_MATMUL_DESC_TRANSA, p.b_transposed ? plain : turned);
    Set(plan, CUBLASLT_MATMUL_DESC_TRANSB, p.a_transposed ? turned : plain);
    plan.left = p.b_transposed ? Layout(p.b_dtype, p.n, p.k, p.b_stride) : Layout(p.b_dtype, p.k, p.n, p.b_stride);
    plan.right = p.a_transposed ? Layout(p.a_dtype, rows, p.k, p.a_stride) : Layout(p.a_dtype, p.k, rows, p.a_stride);
    plan.result = Layout(p.d_dtype, p.n, rows, p.d_stride);
    if (p.bias != nullptr) {
      Set(plan, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      Set(plan, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, TypeOf(p.bias_dtype));
    }
    if (p.a_scale_rows) {
      const cublasLtMatmulMatrixScale_t each = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
      Set(plan, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, each);
      Set(plan, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, each);
    }
    SetPointers(plan, p);
    return plan;
  }

  void Destroy(const Plan& plan) {
    lt_.cublasLtMatrixLayoutDestroy(plan.left);
    lt_.cublasLtMatrixLayoutDestroy(plan.right);
    lt_.cublasLtMatrixLayoutDestroy(plan.result);
    lt_.cublasLtMatmulDescDestroy(plan.product);
  }

  Plan NewPlan(const Product& p, bool strict) {
    Plan plan = Describe(p, p.rows);
    // A strict product never sums in parts, and keeps the algorithm of kStrictRows rows where it can.
    Prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           static_cast<uint32_t>(strict ? CUBLASLT_REDUCTION_SCHEME_NONE : CUBLASLT_REDUCTION_SCHEME_MASK));
    Prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, Alignment(p.b));
    Prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, Alignment(p.a));
    Prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, Alignment(p.d));
    Prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, Alignment(p.d));
    const auto choose = [&](const Plan& of) {
      cublasLtMatmulHeuristicResult_t result = {};
      int found = 0;
      const cublasStatus_t status = lt_.cublasLtMatmulAlgoGetHeuristic(
          handle_, of.product, of.left, of.right, of.result, of.result, preference_, 1, &result, &found);
      QUERN_CHECK(status == CUBLAS_STATUS_SUCCESS && found > 0,
                  StrCat("cuBLASLt has no algorithm for ", DTypeName(p.a_dtype), " [", p.rows, ", ", p.k, "] times ",
                         DTypeName(p.b_dtype), " [", p.k, ", ", p.n, "] to ", DTypeName(p.d_dtype), ": status ",
                         static_cast<int>(status)));
      return result.algo;
    };
    // With a transposed left operand `rows` is no number of tokens.
    if (strict && !p.a_transposed && p.rows != kStrictRows) {
      const Plan nominal = Describe(p, kStrictRows);
      plan.algorithm = choose(nominal);
      Destroy(nominal);
      cublasLtMatmulHeuristicResult_t result = {};
      if (lt_.cublasLtMatmulAlgoCheck(handle_, plan.product, plan.left, plan.right, plan.result, plan.result,
                                      &plan.algorithm, &result) == CUBLAS_STATUS_SUCCESS &&
          result.workspaceSize <= kWorkspace)
        return plan;
      LogWarning(StrCat("cuBLASLt's algorithm for ", kStrictRows, " rows cannot do ", p.rows,
                        " rows: their results may depend on how many they are"));
    }
    plan.algorithm = choose(plan);
    return plan;
  }

  const Library& lt_;
  Runtime& runtime_;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
  void* workspace_ = nullptr;
  std::map<Key, Plan> plans_;  // by shape and recipe
};

}  // namespace

BlasResult NewBlas(Runtime& runtime) {
  std::string error;
  const Library* library = FindLibrary(error);
  if (library == nullptr) return {nullptr, error};
  return {std::make_unique<BlasLt>(*library, runtime), {}};
}

}  // namespace quern::cuda
