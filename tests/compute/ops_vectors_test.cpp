// Expected results made by others (ONNX backend node tests; Stanford CS336 assignment 1) through the CPU backend.

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "compute/cpu/cpu_ops.h"
#include "tests/shared_data.h"

namespace quern {
namespace {

using Json = nlohmann::json;

Json ReadJson(const std::string& path) {
  std::ifstream in(SharedData("vectors/" + path));
  return Json::parse(in);
}

struct Array {
  std::vector<int64_t> shape;
  std::vector<float> data;
};

Array ToArray(const Json& json) {
  return {json.at("shape").get<std::vector<int64_t>>(), json.at("data").get<std::vector<float>>()};
}

// The dimensions from `axis` on are columns.
Tensor ToTensor(const Array& array, size_t axis) {
  const auto product = [&](size_t begin, size_t end) {
    return std::accumulate(array.shape.begin() + static_cast<std::ptrdiff_t>(begin),
                           array.shape.begin() + static_cast<std::ptrdiff_t>(end), int64_t{1}, std::multiplies<>());
  };
  Tensor out(DType::kF32, product(0, axis), product(axis, array.shape.size()));
  std::copy(array.data.begin(), array.data.end(), out.Row<float>(0));
  return out;
}

void ExpectNear(const TensorView& actual, const TensorView& expected, float absolute, float relative,
                const std::string& what) {
  ASSERT_EQ(actual.rows, expected.rows) << what;
  ASSERT_EQ(actual.cols, expected.cols) << what;
  for (int64_t r = 0; r < actual.rows; ++r) {
    for (int64_t c = 0; c < actual.cols; ++c) {
      const float want = expected.Row<float>(r)[c];
      ASSERT_NEAR(actual.Row<float>(r)[c], want, absolute + relative * std::abs(want)) << what << " " << r << " " << c;
    }
  }
}

size_t AxisOf(const Json& test, int64_t fallback, size_t rank) {
  const auto axis = test.at("node").at("attributes").value("axis", fallback);
  return static_cast<size_t>(axis < 0 ? axis + static_cast<int64_t>(rank) : axis);
}

std::vector<std::string> OnnxTests(const std::string& prefix) {
  std::vector<std::string> out;
  for (const auto& entry : std::filesystem::directory_iterator(SharedData("vectors/onnx"))) {
    const std::string name = entry.path().filename();
    if (name.starts_with(prefix) && name.ends_with(".json")) out.push_back("onnx/" + name);
  }
  return out;
}

class OpsVectorsTest : public ::testing::Test {
 protected:
  ThreadPool pool_{2};
  CpuOps ops_{&pool_};
};

TEST_F(OpsVectorsTest, OnnxRmsNormalization) {
  QUERN_NEED_SHARED_DATA("vectors/onnx");
  int tested = 0;
  for (const std::string& path : OnnxTests("test_rms_normalization")) {
    const Json test = ReadJson(path);
    const Array x = ToArray(test.at("inputs")[0]), weight = ToArray(test.at("inputs")[1]);
    const size_t axis = AxisOf(test, -1, x.shape.size());
    const Tensor rows = ToTensor(x, axis), expected = ToTensor(ToArray(test.at("outputs")[0]), axis);
    Tensor y(DType::kF32, rows.rows(), rows.cols());
    ops_.RmsNorm({.x = rows,
                  .weight = ToTensor(weight, 0),
                  .eps = test.at("node").at("attributes").value("epsilon", 1e-5f),
                  .y = y,
                  .inv_rms = {}});
    ExpectNear(y, expected, 1e-6f, 1e-5f, path);
    ++tested;
  }
  EXPECT_GE(tested, 15);
}

// Softmax and log-softmax over the last axis, which is how the operation sees logits: log p from log_prob of each id in
// turn, p from the gradient.
TEST_F(OpsVectorsTest, OnnxSoftmax) {
  QUERN_NEED_SHARED_DATA("vectors/onnx");
  int tested = 0;
  for (const std::string prefix : {"test_softmax", "test_logsoftmax"}) {
    for (const std::string& path : OnnxTests(prefix)) {
      const Json test = ReadJson(path);
      const Array x = ToArray(test.at("inputs")[0]);
      const size_t axis = AxisOf(test, -1, x.shape.size());
      if (axis + 1 != x.shape.size()) continue;
      const Tensor logits = ToTensor(x, axis), expected = ToTensor(ToArray(test.at("outputs")[0]), axis);
      const int64_t rows = logits.rows();
      Tensor lse(DType::kF32, 1, rows), log_prob(DType::kF32, 1, rows), a(DType::kF32, 1, rows);
      Tensor actual(DType::kF32, rows, logits.cols()), gradient(DType::kF32, rows, logits.cols());
      ops_.Fill(a, -1.0f);
      for (int64_t id = 0; id < logits.cols(); ++id) {
        const std::vector<int32_t> targets(static_cast<size_t>(rows), static_cast<int32_t>(id));
        ops_.LogSoftmax({.logits = logits,
                         .targets = targets,
                         .lse = lse,
                         .log_prob = log_prob,
                         .mean_log_prob = {},
                         .entropy = {}});
        ops_.LogSoftmaxBackward(
            {.logits = logits, .lse = lse, .targets = targets, .a = a, .b = {}, .c = {}, .dlogits = gradient});
        for (int64_t r = 0; r < rows; ++r) {
          const bool log = prefix == "test_logsoftmax";
          actual.Row<float>(r)[id] = log ? log_prob.Row<float>(0)[r] : gradient.Row<float>(r)[id] + 1;
        }
      }
      // Logits of 10000 have a spacing of 0.001 in the log-sum-exp.
      const float spacing = path.find("large_number") != std::string::npos ? 5e-4f : 1e-6f;
      ExpectNear(actual, expected, spacing, 1e-5f, path);
      ++tested;
    }
  }
  EXPECT_GE(tested, 8);
}

TEST_F(OpsVectorsTest, OnnxRotaryEmbedding) {
  QUERN_NEED_SHARED_DATA("vectors/onnx");
  const Json test = ReadJson("onnx/test_rotary_embedding.json");
  const Array x = ToArray(test.at("inputs")[0]), want = ToArray(test.at("outputs")[0]);  // [batch, heads, rows, dim]
  const Tensor cos = ToTensor(ToArray(test.at("inputs")[1]), 1), sin = ToTensor(ToArray(test.at("inputs")[2]), 1);
  const auto positions = test.at("inputs")[3].at("data").get<std::vector<int32_t>>();
  const int64_t batch = x.shape[0], heads = x.shape[1], count = x.shape[2], dim = x.shape[3];
  // The file's heads are queries; the one key and value head stays zero.
  Tensor qkv(DType::kF32, batch * count, (heads + 2) * dim), expected(DType::kF32, batch * count, (heads + 2) * dim);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t i = 0; i < count * dim; ++i) {
        const auto from = static_cast<size_t>((b * heads + head) * count * dim + i);
        qkv.Row<float>(b * count + i / dim)[head * dim + i % dim] = x.data[from];
        expected.Row<float>(b * count + i / dim)[head * dim + i % dim] = want.data[from];
      }
    }
  }
  ops_.Rotary({.qkv = qkv,
               .out = qkv,
               .positions = positions,
               .cos = cos,
               .sin = sin,
               .q_norm = {},
               .k_norm = {},
               .heads = heads,
               .kv_heads = 1,
               .head_dim = dim});
  ExpectNear(qkv, expected, 1e-6f, 1e-6f, "rotary");
}

TEST_F(OpsVectorsTest, OnnxSwish) {
  QUERN_NEED_SHARED_DATA("vectors/onnx");
  const Json test = ReadJson("onnx/test_swish.json");
  const Array x = ToArray(test.at("inputs")[0]);
  const auto count = static_cast<int64_t>(x.data.size());
  Tensor gate_up(DType::kF32, 1, 2 * count), h(DType::kF32, 1, count);
  ops_.Fill(gate_up, 1.0f);
  std::copy(x.data.begin(), x.data.end(), gate_up.Row<float>(0));
  ops_.SwiGlu({.gate_up = gate_up, .h = h});
  ExpectNear(h, ToTensor(ToArray(test.at("outputs")[0]), 0), 1e-6f, 1e-6f, "swish");
}

// Arbitrary masks through causal attention: each query gets a sequence of its own that holds the keys its mask allows,
// and stands at its end.
TEST_F(OpsVectorsTest, MaskedAttention) {
  QUERN_NEED_SHARED_DATA("vectors/nn/sdpa_masked.json");
  const Json test = ReadJson("nn/sdpa_masked.json");
  const Array q = ToArray(test.at("q")), k = ToArray(test.at("k")), v = ToArray(test.at("v")),
              mask = ToArray(test.at("mask")), want = ToArray(test.at("expected"));
  const int64_t batch = q.shape[0], queries = q.shape[1], keys = k.shape[1], dim = q.shape[2];
  const KvLayout layout = {.dtype = DType::kF32, .layers = 1, .kv_heads = 1, .head_dim = dim};
  int tested = 0;
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t i = 0; i < queries; ++i) {
      Tensor qkv(DType::kF32, keys, 3 * dim), page(DType::kF32, 1, layout.page_elements());
      int64_t count = 0;
      for (int64_t j = 0; j < keys; ++j) {
        if (mask.data[static_cast<size_t>((b * queries + i) * keys + j)] == 0) continue;
        for (int64_t d = 0; d < dim; ++d) {
          qkv.Row<float>(count)[d] = q.data[static_cast<size_t>((b * queries + i) * dim + d)];
          qkv.Row<float>(count)[dim + d] = k.data[static_cast<size_t>((b * keys + j) * dim + d)];
          qkv.Row<float>(count)[2 * dim + d] = v.data[static_cast<size_t>((b * keys + j) * dim + d)];
        }
        ++count;
      }
      if (count == 0) continue;
      void* pages[] = {page.view().data};
      const std::vector<SequenceRows> all = {{.row = 0, .count = count, .context = 0, .pages = pages}};
      const std::vector<SequenceRows> last = {{.row = 0, .count = 1, .context = count - 1, .pages = pages}};
      Tensor out(DType::kF32, 1, dim), expected(DType::kF32, 1, dim);
      ops_.KvWrite({.qkv = qkv, .sequences = all, .layout = layout, .layer = 0, .heads = 1});
      ops_.Attention({.q = qkv.view().Rows(0, 1).Cols(0, dim),
                      .sequences = last,
                      .layout = layout,
                      .layer = 0,
                      .heads = 1,
                      .scale = test.at("scale").get<float>(),
                      .window = 0,
                      .out = out,
                      .lse = {}});
      for (int64_t d = 0; d < dim; ++d)
        expected.Row<float>(0)[d] = want.data[static_cast<size_t>((b * queries + i) * dim + d)];
      ExpectNear(out, expected, 2e-6f, 1e-5f, "query " + std::to_string(i));
      ++tested;
    }
  }
  EXPECT_GE(tested, 40);
}

TEST_F(OpsVectorsTest, AdamWForThousandSteps) {
  QUERN_NEED_SHARED_DATA("vectors/nn/adamw_1000_steps.json");
  const Json test = ReadJson("nn/adamw_1000_steps.json");
  const auto start = test.at("W0").get<std::vector<float>>(), x = test.at("x").get<std::vector<float>>();
  const auto expected = test.at("expected_W").get<std::vector<float>>();
  Tensor w(DType::kF32, 1, 6), grad(DType::kF32, 1, 6), m(DType::kF32, 1, 6), v(DType::kF32, 1, 6);
  std::copy(start.begin(), start.end(), w.Row<float>(0));
  for (int64_t step = 1; step <= 1000; ++step) {
    const float* in = x.data() + (step - 1) * 3;
    const float targets[] = {in[0] + in[1], -in[2]};
    for (int64_t o = 0; o < 2; ++o) {
      const float* row = w.Row<float>(0) + o * 3;
      const float error = row[0] * in[0] + row[1] * in[1] + row[2] * in[2] - targets[o];
      for (int64_t i = 0; i < 3; ++i) grad.Row<float>(0)[o * 3 + i] = 2 * error * in[i];
    }
    ops_.AdamW({.param = w,
                .grad = grad,
                .m = m,
                .v = v,
                .learning_rate = test.at("lr").get<float>(),
                .beta1 = test.at("betas")[0].get<float>(),
                .beta2 = test.at("betas")[1].get<float>(),
                .eps = test.at("eps").get<float>(),
                .weight_decay = test.at("weight_decay").get<float>(),
                .step = step});
  }
  for (size_t i = 0; i < 6; ++i) EXPECT_NEAR(w.Row<float>(0)[i], expected[i], test.at("atol").get<float>());
}

}  // namespace
}  // namespace quern
