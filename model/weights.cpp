#include "model/weights.h"

#include "base/strings.h"

namespace quern {

Weights::Weights(Ops& ops, const ModelConfig& config, const Recipe& recipe, bool trainable)
    : ops_(ops), config_(config), recipe_(recipe), trainable_(trainable) {
  blocks.resize(static_cast<size_t>(config.layers));
  for (BlockWeights& b : blocks) b.qkv.recipe = b.attention_output.recipe = b.gate_up.recipe = b.down.recipe = recipe;
  head.recipe = recipe.act;
}

Status Weights::LoadLinear(const TensorSource& source, const std::vector<std::string>& names, LinearWeight& out) {
  std::vector<TensorView> parts;
  int64_t rows = 0;
  bool adjacent = true;
  for (const std::string& name : names) {
    QUERN_ASSIGN_OR_RETURN(TensorView part, source(name + ".weight"));
    if (!parts.empty()) {
      const TensorView& last = parts.back();
      if (part.cols != last.cols || part.dtype != last.dtype) {
        return InvalidArgument(name + ".weight: shape or dtype differs from " + names[0] + ".weight");
      }
      adjacent = adjacent && part.stride == last.stride && last.stride == last.cols &&
                 part.data == last.Row<uint8_t>(last.rows);
    }
    rows += part.rows;
    parts.push_back(part);
  }
  TensorView whole = parts[0];
  Tensor gathered;
  if (adjacent) {
    whole.rows = rows;
  } else {
    gathered = Tensor(whole.dtype, rows, whole.cols);
    int64_t row = 0;
    for (const TensorView& part : parts) {
      for (int64_t r = 0; r < part.rows; ++r, ++row) {
        std::memcpy(gathered.Row<uint8_t>(row), part.Row<uint8_t>(r),
                    static_cast<size_t>(part.cols * DTypeSize(part.dtype)));
      }
    }
    whole = gathered;
  }
  if (!PackLinear(ops_, whole, trainable_, out))
    return InvalidArgument(names[0] + ".weight: the shape changed between versions");
  return {};
}

Status Weights::LoadFp8Amax(const TensorSource& source, int64_t layer, BlockWeights& block) {
  const Result<TensorView> amax = source(Fp8AmaxName(layer));
  LinearWeight* linears[] = {&block.qkv, &block.attention_output, &block.gate_up, &block.down};
  for (LinearWeight* linear : linears) linear->amax = Tensor(DType::kF32, 1, 3);
  if (!amax.ok()) return amax.status().code() == StatusCode::kNotFound ? Status() : amax.status();
  if (amax->cols != 12) return InvalidArgument(StrCat(Fp8AmaxName(layer), ": ", amax->cols, " values, expected 12"));
  for (int64_t i = 0; i < 4; ++i) ops_.Cast(amax->Cols(3 * i, 3), linears[i]->amax);
  return {};
}

Status Weights::LoadSmoothScale(const TensorSource& source, int64_t layer, LinearWeight& down) {
  const int64_t width = config_.intermediate_size;
  const Result<TensorView> scale = source(SmoothScaleName(layer));
  down.input_scale = Tensor();
  if (!scale.ok()) return scale.status().code() == StatusCode::kNotFound ? Status() : scale.status();
  if (scale->cols != width)
    return InvalidArgument(StrCat(SmoothScaleName(layer), ": ", scale->cols, " values, expected ", width));
  down.input_scale = Tensor(DType::kF32, 1, width, ops_.memory());
  ops_.Cast(*scale, down.input_scale);
  return {};
}

Status Weights::LoadVector(const TensorSource& source, const std::vector<std::string>& names, Tensor& out) {
  int64_t size = 0;
  std::vector<TensorView> parts;
  for (const std::string& name : names) {
    QUERN_ASSIGN_OR_RETURN(const TensorView part, source(name));
    parts.push_back(part);
    size += part.cols;
  }
  if (out.cols() != size) out = Tensor(acc_dtype(), 1, size, ops_.memory());
  int64_t begin = 0;
  for (const TensorView& part : parts) {
    ops_.Cast(part, out.view().Cols(begin, part.cols));
    begin += part.cols;
  }
  return {};
}

Status Weights::Load(const TensorSource& source) {
  const ModelConfig& c = config_;
  QUERN_ASSIGN_OR_RETURN(const TensorView table, source("model.embed_tokens.weight"));
  if (embedding.rows() != table.rows) embedding = Tensor(dtype(), table.rows, table.cols, ops_.memory());
  ops_.Cast(table, embedding);
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const std::string p = LayerPrefix(layer);
    const std::string a = p + "self_attn.";
    BlockWeights& b = blocks[static_cast<size_t>(layer)];
    QUERN_RETURN_IF_ERROR(LoadVector(source, {p + "input_layernorm.weight"}, b.input_norm));
    QUERN_RETURN_IF_ERROR(LoadVector(source, {p + "post_attention_layernorm.weight"}, b.post_attention_norm));
    QUERN_RETURN_IF_ERROR(LoadLinear(source, {a + "q_proj", a + "k_proj", a + "v_proj"}, b.qkv));
    QUERN_RETURN_IF_ERROR(LoadLinear(source, {a + "o_proj"}, b.attention_output));
    QUERN_RETURN_IF_ERROR(LoadLinear(source, {p + "mlp.gate_proj", p + "mlp.up_proj"}, b.gate_up));
    if (recipe_.delayed()) QUERN_RETURN_IF_ERROR(LoadFp8Amax(source, layer, b));
    if (recipe_.smooth_channels()) QUERN_RETURN_IF_ERROR(LoadSmoothScale(source, layer, b.down));
    QUERN_RETURN_IF_ERROR(LoadLinear(source, {p + "mlp.down_proj"}, b.down));
    if (trainable_ && recipe_.delayed() && recipe_.smooth_channels()) {
      QUERN_ASSIGN_OR_RETURN(const TensorView down, source(p + "mlp.down_proj.weight"));
      if (b.down.master.rows() != down.rows) b.down.master = Tensor(DType::kF32, down.rows, down.cols, ops_.memory());
      ops_.Cast(down, b.down.master);
    }
    if (c.attention_bias) {
      QUERN_RETURN_IF_ERROR(LoadVector(source, {a + "q_proj.bias", a + "k_proj.bias", a + "v_proj.bias"}, b.qkv.bias));
    }
    if (c.attention_output_bias) {
      QUERN_RETURN_IF_ERROR(LoadVector(source, {a + "o_proj.bias"}, b.attention_output.bias));
    }
    if (c.mlp_bias) {
      QUERN_RETURN_IF_ERROR(LoadVector(source, {p + "mlp.gate_proj.bias", p + "mlp.up_proj.bias"}, b.gate_up.bias));
      QUERN_RETURN_IF_ERROR(LoadVector(source, {p + "mlp.down_proj.bias"}, b.down.bias));
    }
    if (c.qk_norm) {
      QUERN_RETURN_IF_ERROR(LoadVector(source, {a + "q_norm.weight"}, b.q_norm));
      QUERN_RETURN_IF_ERROR(LoadVector(source, {a + "k_norm.weight"}, b.k_norm));
    }
    if (c.selection_gain) {
      QUERN_ASSIGN_OR_RETURN(const TensorView gain, source(SelectionGainName(layer)));
      const Tensor wide(acc_dtype(), 1, 1);
      ops_.Cast(gain, wide);
      b.gain = wide.dtype() == DType::kF64 ? *wide.Row<double>(0) : static_cast<double>(*wide.Row<float>(0));
    }
  }
  QUERN_RETURN_IF_ERROR(LoadVector(source, {"model.norm.weight"}, final_norm));
  return LoadLinear(source, {c.tie_word_embeddings ? "model.embed_tokens" : "lm_head"}, head);
}

int64_t Weights::bytes() const {
  int64_t total = embedding.bytes() + final_norm.bytes();
  const auto add = [&total](const LinearWeight& w) { total += w.bytes(); };
  for (const BlockWeights& b : blocks) {
    add(b.qkv);
    add(b.attention_output);
    add(b.gate_up);
    add(b.down);
    total += b.input_norm.bytes() + b.post_attention_norm.bytes() + b.q_norm.bytes() + b.k_norm.bytes();
  }
  add(head);
  return total;
}

}  // namespace quern
