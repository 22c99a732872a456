#include "model/parameters.h"

#include <cstring>
#include <map>
#include <memory>

#include "base/random.h"
#include "base/strings.h"

namespace quern {

std::string LayerPrefix(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

std::string SelectionGainName(int64_t layer) { return LayerPrefix(layer) + "self_attn.selection_gain"; }

std::string SmoothScaleName(int64_t layer) { return LayerPrefix(layer) + "mlp.smooth_scale"; }

std::string Fp8AmaxName(int64_t layer) { return LayerPrefix(layer) + "fp8_amax"; }

void ParameterLayout::Add(const std::string& name, int64_t rows, int64_t cols, bool decay) {
  parameters_.push_back({name, rows, cols, size_, decay});
  size_ += rows * cols;
}

ParameterLayout::ParameterLayout(const ModelConfig& c) {
  Add("model.embed_tokens.weight", c.vocab_size, c.hidden_size, true);
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const std::string p = LayerPrefix(layer);
    layer_offsets_.push_back(size_);
    Add(p + "input_layernorm.weight", 1, c.hidden_size, false);
    Add(p + "self_attn.q_proj.weight", c.q_size(), c.hidden_size, true);
    Add(p + "self_attn.k_proj.weight", c.kv_size(), c.hidden_size, true);
    Add(p + "self_attn.v_proj.weight", c.kv_size(), c.hidden_size, true);
    if (c.attention_bias) {
      Add(p + "self_attn.q_proj.bias", 1, c.q_size(), false);
      Add(p + "self_attn.k_proj.bias", 1, c.kv_size(), false);
      Add(p + "self_attn.v_proj.bias", 1, c.kv_size(), false);
    }
    if (c.qk_norm) {
      Add(p + "self_attn.q_norm.weight", 1, c.head_dim, false);
      Add(p + "self_attn.k_norm.weight", 1, c.head_dim, false);
    }
    if (c.selection_gain) Add(SelectionGainName(layer), 1, 1, false);
    Add(p + "self_attn.o_proj.weight", c.hidden_size, c.q_size(), true);
    if (c.attention_output_bias) Add(p + "self_attn.o_proj.bias", 1, c.hidden_size, false);
    Add(p + "post_attention_layernorm.weight", 1, c.hidden_size, false);
    Add(p + "mlp.gate_proj.weight", c.intermediate_size, c.hidden_size, true);
    Add(p + "mlp.up_proj.weight", c.intermediate_size, c.hidden_size, true);
    if (c.mlp_bias) {
      Add(p + "mlp.gate_proj.bias", 1, c.intermediate_size, false);
      Add(p + "mlp.up_proj.bias", 1, c.intermediate_size, false);
    }
    Add(p + "mlp.down_proj.weight", c.hidden_size, c.intermediate_size, true);
    if (c.mlp_bias) Add(p + "mlp.down_proj.bias", 1, c.hidden_size, false);
  }
  layer_offsets_.push_back(size_);
  Add("model.norm.weight", 1, c.hidden_size, false);
  if (!c.tie_word_embeddings) Add("lm_head.weight", c.vocab_size, c.hidden_size, true);
}

bool ParameterLayout::Has(const std::string& name) const {
  for (const ParameterInfo& info : parameters_)
    if (info.name == name) return true;
  return false;
}

const ParameterInfo& ParameterLayout::Find(const std::string& name) const {
  for (const ParameterInfo& info : parameters_)
    if (info.name == name) return info;
  QUERN_CHECK(false, "no parameter " + name);
  return parameters_[0];
}

Parameters::Parameters(const ModelConfig& config, DType dtype, Ops* ops)
    : layout_(config),
      device_(ops != nullptr && ops->memory() != nullptr ? ops : nullptr),
      data_(dtype, 1, layout_.size(), device_ != nullptr ? device_->memory() : nullptr) {}

TensorView Parameters::View(const std::string& name) const { return View(name, layout_.Find(name).rows); }

TensorView Parameters::View(const std::string& name, int64_t rows) const {
  const ParameterInfo& info = layout_.Find(name);
  QUERN_CHECK(info.offset + rows * info.cols <= layout_.size());
  TensorView view = data_.view().Cols(info.offset, rows * info.cols);
  view.rows = rows;
  view.cols = view.stride = info.cols;
  return view;
}

TensorSource Parameters::Source() const {
  return [this](const std::string& name) -> Result<TensorView> {
    if (!layout_.Has(name)) return NotFound(name + ": not a weight of this model");
    return View(name);
  };
}

void Parameters::Initialize(const ModelConfig& config, uint64_t seed) {
  const Tensor host(data_.dtype(), 1, device_ != nullptr ? layout_.size() : 0);
  const TensorView data = device_ != nullptr ? host.view() : data_.view();
  const auto set = [&data](int64_t index, double value) {
    if (data.dtype == DType::kF64) {
      data.Row<double>(0)[index] = static_cast<float>(value);
    } else if (data.dtype == DType::kBf16) {
      data.Row<Bf16>(0)[index] = Bf16(static_cast<float>(value));
    } else {
      data.Row<float>(0)[index] = static_cast<float>(value);
    }
  };
  uint64_t stream = 0;
  for (const ParameterInfo& info : layout_.parameters()) {
    Random random(seed, ++stream);
    const bool zero = info.name.ends_with(".bias") || info.name.ends_with(".selection_gain");
    for (int64_t i = 0; i < info.rows * info.cols; ++i) {
      set(info.offset + i, info.decay ? random.Normal() * config.initializer_range : (zero ? 0.0 : 1.0));
    }
  }
  if (device_ != nullptr) device_->Upload(host, data_);
}

namespace {

double ElementAsDouble(const TensorView& view, int64_t row, int64_t col) {
  switch (view.dtype) {
    case DType::kF32: return static_cast<double>(view.Row<float>(row)[col]);
    case DType::kF64: return view.Row<double>(row)[col];
    case DType::kBf16: return static_cast<double>(static_cast<float>(view.Row<Bf16>(row)[col]));
    case DType::kF16: return static_cast<double>(HalfToFloat(view.Row<uint16_t>(row)[col]));
    default: QUERN_CHECK(false, "not a floating-point weight"); return 0;
  }
}

}  // namespace

void ClampSelectionGains(const ModelConfig& config, const Parameters& parameters) {
  for (int64_t layer = 0; config.selection_gain && layer < config.layers; ++layer) {
    const TensorView gain = parameters.View(SelectionGainName(layer));
    if (Ops* device = parameters.device(); device != nullptr) {
      if (ElementAsDouble(OnHost(*device, gain), 0, 0) < 0) device->Fill(gain, 0);
    } else if (ElementAsDouble(gain, 0, 0) < 0) {
      std::memset(gain.data, 0, static_cast<size_t>(DTypeSize(gain.dtype)));
    }
  }
}

TensorSource FoldSmoothScales(const ModelConfig& config, const TensorSource& source) {
  const auto folded = std::make_shared<std::map<std::string, Tensor>>();
  return [config, source, folded](const std::string& name) -> Result<TensorView> {
    if (name.ends_with(".mlp.smooth_scale") || name.ends_with(".fp8_amax"))
      return NotFound(name + ": folded into the weights, or of those that were not");
    QUERN_ASSIGN_OR_RETURN(const TensorView view, source(name));
    const size_t mlp = name.find(".mlp.");
    const bool up = name.ends_with(".mlp.up_proj.weight") || name.ends_with(".mlp.up_proj.bias");
    if (mlp == std::string::npos || (!up && !name.ends_with(".mlp.down_proj.weight"))) return view;
    const Result<TensorView> scale = source(name.substr(0, mlp) + ".mlp.smooth_scale");
    if (!scale.ok()) return scale.status().code() == StatusCode::kNotFound ? Result<TensorView>(view) : scale.status();
    QUERN_CHECK(scale->cols == config.intermediate_size);
    Tensor& out = (*folded)[name];
    out = Tensor(DType::kF32, view.rows, view.cols);
    for (int64_t r = 0; r < view.rows; ++r) {
      for (int64_t c = 0; c < view.cols; ++c) {
        const bool bias = view.rows == 1;
        const double s = ElementAsDouble(*scale, 0, up && !bias ? r : c);
        out.Row<float>(r)[c] =
            static_cast<float>(up ? ElementAsDouble(view, r, c) * s : ElementAsDouble(view, r, c) / s);
      }
    }
    return out.view();
  };
}

TensorSource OnHost(Ops& ops, const TensorSource& source) {
  if (ops.memory() == nullptr) return source;
  const auto copies = std::make_shared<std::map<std::string, Tensor>>();
  return [&ops, source, copies](const std::string& name) -> Result<TensorView> {
    QUERN_ASSIGN_OR_RETURN(const TensorView view, source(name));
    Tensor& copy = (*copies)[name];
    copy = OnHost(ops, view);
    return copy.view();
  };
}

Status Parameters::CopyFrom(const TensorSource& source) {
  for (const ParameterInfo& info : layout_.parameters()) {
    QUERN_ASSIGN_OR_RETURN(const TensorView from, source(info.name));
    if (from.rows != info.rows || from.cols != info.cols) {
      return InvalidArgument(StrCat(info.name, ": shape [", from.rows, ", ", from.cols, "], the configuration needs [",
                                    info.rows, ", ", info.cols, "]"));
    }
    const TensorView to = View(info.name);
    if (device_ != nullptr) {
      device_->Cast(from, to);
      continue;
    }
    for (int64_t r = 0; r < info.rows; ++r) {
      for (int64_t c = 0; c < info.cols; ++c) {
        const double value = ElementAsDouble(from, r, c);
        if (to.dtype == DType::kF64) {
          to.Row<double>(r)[c] = value;
        } else if (to.dtype == DType::kBf16) {
          to.Row<Bf16>(r)[c] = Bf16(static_cast<float>(value));
        } else {
          to.Row<float>(r)[c] = static_cast<float>(value);
        }
      }
    }
  }
  return {};
}

}  // namespace quern
