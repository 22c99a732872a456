#include "model/transformer.h"

#include <algorithm>
#include <optional>

#include "base/random.h"
#include "model/rope.h"

namespace quern {

KvView MakeTrainingKv(const KvLayout& model_layout, TokenBatch& batch, Arena& arena, std::vector<void*>& page_table) {
  KvView view{model_layout, true};
  view.layout.layers = 1;
  size_t pages = 0;
  const auto count = [](const SequenceRows& s) {
    return static_cast<size_t>((s.count + KvLayout::kPageTokens - 1) / KvLayout::kPageTokens);
  };
  for (const SequenceRows& s : batch.sequences) pages += count(s);
  const TensorView storage = arena.New(view.layout.dtype, static_cast<int64_t>(pages), view.layout.page_elements());
  page_table.resize(pages);
  for (size_t i = 0; i < pages; ++i) page_table[i] = storage.Row<uint8_t>(static_cast<int64_t>(i));
  TensorView selection;
  if (view.layout.selective)
    selection = arena.New(model_layout.dtype == DType::kF64 ? DType::kF64 : DType::kF32, static_cast<int64_t>(pages),
                          view.layout.selection_elements());
  size_t first = 0;
  for (SequenceRows& s : batch.sequences) {
    QUERN_CHECK(s.context == 0);
    s.pages = page_table.data() + first;
    if (view.layout.selective) s.selection = selection.Row<uint8_t>(static_cast<int64_t>(first));
    first += count(s);
  }
  return view;
}

double LivePositions(Ops& ops, const TokenBatch& batch, const Saved& saved) {
  double sum = 0;
  for (const SavedBlock& block : saved.blocks) {
    const Tensor live = OnHost(ops, block.live);
    for (const SequenceRows& s : batch.sequences) {
      double most = 0;
      for (int64_t r = s.row; r < s.row + s.count; ++r) {
        const bool wide = live.dtype() == DType::kF64;
        most = std::max(most, wide ? live.Row<double>(0)[r] : static_cast<double>(live.Row<float>(0)[r]));
      }
      sum += most;
    }
  }
  return sum;
}

namespace {

// Each of `rows`, which are ascending, as a sequence of its own: row i is position rows[i] of the sequence it is in.
std::vector<SequenceRows> RowsAlone(const std::vector<SequenceRows>& sequences, const std::vector<int64_t>& rows) {
  std::vector<SequenceRows> alone;
  auto of = sequences.begin();
  for (const int64_t row : rows) {
    while (row >= of->row + of->count) ++of;
    SequenceRows one = *of;
    one.context += row - of->row;
    one.row = static_cast<int64_t>(alone.size());
    one.count = 1;
    alone.push_back(one);
  }
  return alone;
}

}  // namespace

Transformer::Transformer(Ops& ops, const ModelConfig& config, DType dtype, int64_t max_positions)
    : ops_(ops), config_(config), dtype_(dtype) {
  const Tensor cos(acc_dtype(), max_positions, config.head_dim / 2), sin(acc_dtype(), cos.rows(), cos.cols());
  FillRotaryTables(config, cos, sin);
  cos_ = OnDevice(ops, cos);
  sin_ = OnDevice(ops, sin);
}

RotaryArgs Transformer::Rotary(const BlockWeights& block, const TokenBatch& batch, TensorView qkv,
                               TensorView out) const {
  return {.qkv = qkv,
          .out = out,
          .positions = batch.positions,
          .cos = cos_,
          .sin = sin_,
          .q_norm = block.q_norm,
          .k_norm = block.k_norm,
          .norm_eps = config_.rms_norm_eps,
          .heads = config_.heads,
          .kv_heads = config_.kv_heads,
          .head_dim = config_.head_dim};
}

std::shared_ptr<LinearWeight> Transformer::SmoothedDown(const LinearWeight& down, const TensorView& linear_amax) const {
  auto out = std::make_shared<LinearWeight>();
  out->recipe = down.recipe;
  out->amax = Tensor(DType::kF32, 1, 3);
  ops_.Cast(down.amax, out->amax);
  const Tensor scale = OnHost(ops_, linear_amax);
  for (int64_t i = 0; i < scale.cols(); ++i) scale.Row<float>(0)[i] = SmoothScale(scale.Row<float>(0)[i]);
  out->input_scale = OnDevice(ops_, scale);
  if (down.bias.cols() > 0) {
    out->bias = Tensor(down.bias.dtype(), 1, down.bias.cols(), ops_.memory());
    ops_.Cast(down.bias, out->bias);
  }
  QUERN_CHECK(PackLinear(ops_, down.master, true, *out));
  return out;
}

namespace {

// kRow under kFp8Delayed: every token has a scale, from the largest magnitude of its SwiGLU's linear branch.
bool SmoothsTokens(const Recipe& recipe) { return recipe.delayed() && recipe.smooth == Recipe::Smooth::kRow; }

// A block's products whose inputs are cast to FP8, as SavedBlock counts them.
enum Product : int64_t { kQkv, kAttentionOutput, kGateUp, kDown };

// Where casts of a product's input are counted; nowhere unless the recipe is one of FP8.
CastRecord CastsOf(const SavedBlock& s, Product product) {
  if (s.fp8_counts.empty()) return {};
  return {.counts = s.fp8_counts.Cols(0, 2), .amax = s.fp8_amax.Cols(product, 1)};
}

}  // namespace

// What the halves of a block hand on during one call of Forward.
struct Transformer::ForwardPass {
  const Weights& weights;
  const TokenBatch& batch;
  const KvView& kv;
  Arena& arena;
  bool keeps;  // for Backward; else one set of temporaries serves every block, and residual is updated in place
  TensorView residual;
};

SavedBlock Transformer::NewBlock(const ForwardPass& pass) const {
  const ModelConfig& c = config_;
  const DType acc = acc_dtype();
  const int64_t t = pass.batch.rows();
  Arena& arena = pass.arena;
  SavedBlock s;
  s.normed = arena.New(dtype_, t, c.hidden_size);
  s.qkv = arena.New(dtype_, t, c.qkv_size());
  s.qkv_raw = c.qk_norm ? arena.New(dtype_, t, c.qkv_size()) : TensorView{};
  s.attention = arena.New(dtype_, t, c.q_size());
  s.gate_up = arena.New(dtype_, t, 2 * c.intermediate_size);
  s.hidden = arena.New(dtype_, t, c.intermediate_size);
  if (!pass.keeps) {
    s.middle_normed = s.normed;
    return s;
  }
  s.input_inv_rms = arena.New(acc, 1, t);
  s.lse = arena.New(acc, t, c.heads);
  if (c.selective_attention) s.live = arena.New(acc, 1, t);
  s.middle = arena.New(acc, t, c.hidden_size);
  s.middle_inv_rms = arena.New(acc, 1, t);
  s.middle_normed = arena.New(dtype_, t, c.hidden_size);
  if (pass.weights.recipe().fp8()) {
    s.fp8_counts = arena.New(DType::kI32, 1, 4);
    ops_.Fill(s.fp8_counts, 0);
    s.fp8_amax = arena.New(DType::kF32, 1, 8);
    ops_.Fill(s.fp8_amax, 0);
    s.linear_amax = arena.New(DType::kF32, 1, c.intermediate_size);
    ops_.Fill(s.linear_amax, 0);
  }
  return s;
}

void Transformer::Forward(const Weights& weights, const TokenBatch& batch, const KvView& kv, Arena& arena,
                          TensorView hidden, Saved* saved) const {
  const ModelConfig& c = config_;
  const DType acc = acc_dtype();
  const int64_t t = batch.rows();
  QUERN_CHECK(saved == nullptr || !batch.wanted.has_value());
  if (t == 0) return;
  std::optional<Arena::Scope> scope;
  if (saved == nullptr) scope.emplace(arena);

  ForwardPass pass{weights, batch, kv, arena, saved != nullptr, arena.New(acc, t, c.hidden_size)};
  ops_.Embedding({.ids = batch.ids, .table = weights.embedding, .out = pass.residual});
  SavedBlock s;
  if (saved == nullptr) {
    s = NewBlock(pass);
  } else {
    saved->blocks.clear();
  }
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    if (pass.keeps) s = NewBlock(pass);
    s.input = pass.residual;
    if (!pass.keeps) s.middle = pass.residual;
    if (!AttentionForward(layer, pass, s)) return;
    FeedForward(layer, pass, s);
    if (saved != nullptr) saved->blocks.push_back(s);
  }
  if (batch.wanted.has_value() && pass.residual.rows == t && hidden.rows < t) {
    const TensorView all = pass.residual;
    pass.residual = arena.New(acc, hidden.rows, c.hidden_size);
    ops_.GatherRows({.x = all, .rows = *batch.wanted, .y = pass.residual});
  }
  TensorView inv_rms;
  if (saved != nullptr) {
    saved->final_input = pass.residual;
    saved->final_inv_rms = inv_rms = arena.New(acc, 1, t);
  }
  ops_.RmsNorm(
      {.x = pass.residual, .weight = weights.final_norm, .eps = c.rms_norm_eps, .y = hidden, .inv_rms = inv_rms});
}

// Adds attention over what came before to pass.residual. False: this is the last block and no row of it is wanted.
bool Transformer::AttentionForward(int64_t layer, ForwardPass& pass, SavedBlock& s) const {
  const ModelConfig& c = config_;
  const BlockWeights& w = pass.weights.blocks[static_cast<size_t>(layer)];
  Arena& arena = pass.arena;
  const DType acc = acc_dtype();
  const int64_t t = pass.batch.rows();
  const int64_t kv_layer = pass.kv.one_layer ? 0 : layer;
  const TensorView raw = c.qk_norm ? s.qkv_raw : s.qkv;
  {
    const Arena::Scope cast_scope(arena);
    const OutputCast cast = InputCast(ops_, w.qkv, t, arena, CastsOf(s, kQkv));
    ops_.RmsNorm({.x = s.input,
                  .weight = w.input_norm,
                  .eps = c.rms_norm_eps,
                  .y = s.normed,
                  .inv_rms = s.input_inv_rms,
                  .cast = cast});
    LinearForward(ops_, w.qkv, s.normed, raw, false, arena, CastsOf(s, kQkv), &cast);
  }
  const std::vector<SequenceRows>& sequences =
      pass.kv.layers.empty() ? pass.batch.sequences : pass.kv.layers[static_cast<size_t>(layer)];
  const KvWriteArgs write{
      .qkv = {}, .sequences = sequences, .layout = pass.kv.layout, .layer = kv_layer, .heads = c.heads};
  RotaryArgs rotary = Rotary(w, pass.batch, raw, s.qkv);
  rotary.pages = &write;
  AttentionArgs attention{.q = s.qkv.Cols(0, c.q_size()),
                          .sequences = sequences,
                          .layout = pass.kv.layout,
                          .layer = kv_layer,
                          .heads = c.heads,
                          .scale = AttentionScale(),
                          .window = c.sliding_window,
                          .out = s.attention,
                          .lse = s.lse,
                          .budget = pass.kv.budgets.empty() ? 0 : pass.kv.budgets[static_cast<size_t>(layer)],
                          .gain = w.gain,
                          .live = s.live,
                          .live_tau = kLiveTau};
  // Rows have to do with each other through keys and values alone; and through what selective attention masks.
  const bool drops_rows = layer == c.layers - 1 && pass.batch.wanted.has_value() &&
                          std::ssize(*pass.batch.wanted) < t && pass.kv.layers.empty() && !pass.kv.layout.selective;
  if (!pass.kv.observe && !drops_rows) {
    ops_.RotaryAttention(rotary, attention);
  } else {
    ops_.Rotary(rotary);
    if (pass.kv.observe) pass.kv.observe(layer, attention.q);
    std::vector<SequenceRows> wanted;
    if (drops_rows) {
      const auto n = std::ssize(*pass.batch.wanted);
      if (n == 0) return false;
      wanted = RowsAlone(pass.batch.sequences, *pass.batch.wanted);
      const TensorView all_q = attention.q, all_residual = pass.residual;
      attention.q = arena.New(dtype_, n, c.q_size());
      attention.sequences = wanted;
      pass.residual = s.middle = arena.New(acc, n, c.hidden_size);
      ops_.GatherRows({.x = all_q, .rows = *pass.batch.wanted, .y = attention.q});
      ops_.GatherRows({.x = all_residual, .rows = *pass.batch.wanted, .y = pass.residual});
      for (TensorView* view : {&s.attention, &s.gate_up, &s.hidden, &s.middle_normed}) *view = view->Rows(0, n);
      attention.out = s.attention;
    }
    ops_.Attention(attention);
  }
  if (pass.keeps) ops_.Cast(s.input, s.middle);
  LinearForward(ops_, w.attention_output, s.attention, s.middle, true, arena, CastsOf(s, kAttentionOutput));
  return true;
}

void Transformer::FeedForward(int64_t layer, ForwardPass& pass, SavedBlock& s) const {
  const ModelConfig& c = config_;
  const BlockWeights& w = pass.weights.blocks[static_cast<size_t>(layer)];
  Arena& arena = pass.arena;
  const DType acc = acc_dtype();
  {
    const Arena::Scope cast_scope(arena);
    const OutputCast cast = InputCast(ops_, w.gate_up, s.middle_normed.rows, arena, CastsOf(s, kGateUp));
    ops_.RmsNorm({.x = s.middle,
                  .weight = w.post_attention_norm,
                  .eps = c.rms_norm_eps,
                  .y = s.middle_normed,
                  .inv_rms = s.middle_inv_rms,
                  .cast = cast});
    LinearForward(ops_, w.gate_up, s.middle_normed, s.gate_up, false, arena, CastsOf(s, kGateUp), &cast);
  }
  if (!s.linear_amax.empty())
    ops_.ColumnAmax({.x = s.gate_up.Cols(c.intermediate_size, c.intermediate_size), .amax = s.linear_amax});
  if (pass.keeps) {
    pass.residual = arena.New(acc, pass.batch.rows(), c.hidden_size);
    ops_.Cast(s.middle, pass.residual);
  }
  if (pass.keeps && w.down.master.rows() > 0) s.down = SmoothedDown(w.down, s.linear_amax);
  if (SmoothsTokens(pass.weights.recipe())) {
    QUERN_CHECK(w.down.bias.view().empty(), "smooth_swiglu: row has no down projection with a bias");
    const Arena::Scope rows_scope(arena);
    ops_.SwiGlu({.gate_up = s.gate_up, .h = s.hidden});
    const int64_t rows = s.hidden.rows;
    const TensorView scales = arena.New(DType::kF32, 1, rows);
    const TensorView scaled = arena.New(dtype_, rows, c.intermediate_size);
    const TensorView product = arena.New(acc, rows, c.hidden_size);
    ops_.RowScales({.x = s.gate_up.Cols(c.intermediate_size, c.intermediate_size), .scale = scales});
    ops_.ScaleRows({.x = s.hidden, .scale = scales, .y = scaled});
    LinearForward(ops_, w.down, scaled, product, false, arena, CastsOf(s, kDown));
    ops_.ScaleRows({.x = product, .scale = scales, .divide = true, .y = pass.residual, .accumulate = true});
  } else {
    const LinearWeight& down = s.down ? *s.down : w.down;
    const Arena::Scope cast_scope(arena);
    const OutputCast cast = InputCast(ops_, down, s.hidden.rows, arena, CastsOf(s, kDown));
    ops_.SwiGlu({.gate_up = s.gate_up, .h = s.hidden, .cast = cast});
    LinearForward(ops_, down, s.hidden, pass.residual, true, arena, CastsOf(s, kDown), &cast);
  }
}

void Transformer::Logits(const Weights& weights, const TensorView& hidden, const TensorView& logits) const {
  ops_.MatMul({.a = hidden, .b = weights.head.forward.get(), .c = logits, .bias = {}});
}

void Transformer::Draw(const Weights& weights, const TensorView& hidden, DrawArgs args) const {
  args.a = hidden;
  args.b = weights.head.forward.get();
  ops_.Draw(args);
}

void Transformer::HeadBackward(const Weights& weights, const TensorView& dlogits, const TensorView& hidden,
                               const TensorView& dhidden, Parameters& gradients) const {
  const std::string name = config_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  ops_.MatMul({.a = dlogits, .b = weights.head.transposed.get(), .c = dhidden, .bias = {}});
  ops_.MatMulGradWeight({.dy = dlogits, .x = hidden, .dw = gradients.View(name)});
}

// One call of Backward, and its gradients by activations, [T, ...] each; dresidual in acc, the rest in act.
struct Transformer::BackwardPass {
  const Weights& weights;
  const TokenBatch& batch;
  const Saved& saved;
  Parameters& gradients;
  Arena& arena;
  float live_weight;
  TensorView dresidual;
  TensorView dy;  // dresidual as the products read it
  TensorView dnormed, dattention, dqkv, dh, dgate_up;
};

void CallForAll(const ParameterLayout& layout, const GradientsDone& done) {
  done(layout.LayerOffset(layout.layers()), layout.size());
  for (int64_t layer = layout.layers() - 1; layer >= 0; --layer)
    done(layout.LayerOffset(layer), layout.LayerOffset(layer + 1));
  done(0, layout.LayerOffset(0));
}

void Transformer::Backward(const Weights& weights, const TokenBatch& batch, const Saved& saved,
                           const TensorView& dhidden, Parameters& gradients, Arena& arena, float live_weight,
                           const GradientsDone& done) const {
  const ModelConfig& c = config_;
  const int64_t t = batch.rows();
  if (t == 0) return;
  const Arena::Scope scope(arena);
  const BackwardPass pass{.weights = weights,
                          .batch = batch,
                          .saved = saved,
                          .gradients = gradients,
                          .arena = arena,
                          .live_weight = live_weight,
                          .dresidual = arena.New(acc_dtype(), t, c.hidden_size),
                          .dy = arena.New(dtype_, t, c.hidden_size),
                          .dnormed = arena.New(dtype_, t, c.hidden_size),
                          .dattention = arena.New(dtype_, t, c.q_size()),
                          .dqkv = arena.New(dtype_, t, c.qkv_size()),
                          .dh = arena.New(dtype_, t, c.intermediate_size),
                          .dgate_up = arena.New(dtype_, t, 2 * c.intermediate_size)};

  ops_.Fill(pass.dresidual, 0);
  ops_.RmsNormBackward({.dy = dhidden,
                        .x = saved.final_input,
                        .weight = weights.final_norm,
                        .inv_rms = saved.final_inv_rms,
                        .dx = pass.dresidual,
                        .dweight = gradients.View("model.norm.weight")});
  const ParameterLayout& layout = gradients.layout();
  if (done) done(layout.LayerOffset(c.layers), layout.size());
  for (int64_t layer = c.layers - 1; layer >= 0; --layer) {
    FeedForwardBackward(layer, pass);
    AttentionBackward(layer, pass);
    if (done) done(layout.LayerOffset(layer), layout.LayerOffset(layer + 1));
  }
  ops_.EmbeddingBackward(
      {.ids = batch.ids, .dout = pass.dresidual, .dtable = gradients.View("model.embed_tokens.weight")});
  if (done) done(0, layout.LayerOffset(0));
}

// `name` is the first of the adjacent matrices that one product uses (q, k, v; gate, up); dout.cols covers them all.
void Transformer::LinearGradients(int64_t layer, int64_t product, const LinearWeight& weight, const std::string& name,
                                  const TensorView& dout, const TensorView& x, const TensorView& dx,
                                  const BackwardPass& pass) const {
  const SavedBlock& s = pass.saved.blocks[static_cast<size_t>(layer)];
  const std::string full = LayerPrefix(layer) + name;
  CastRecord record;
  if (!s.fp8_counts.empty())
    record = {.counts = s.fp8_counts.Cols(2, 2),
              .amax = s.fp8_amax.Cols(4 + product, 1),
              .seed = MixSeed(pass.saved.seed, static_cast<uint64_t>(4 * layer + product))};
  LinearBackward(ops_, weight, {.dy = dout, .x = x, .dx = dx, .dw = pass.gradients.View(full + ".weight", dout.cols)},
                 pass.arena, record);
  if (weight.bias.view().empty()) return;
  TensorView dbias = pass.gradients.View(full + ".bias");
  dbias.cols = dbias.stride = dout.cols;
  ops_.BiasBackward({.dy = dout, .dbias = dbias});
}

void Transformer::FeedForwardBackward(int64_t layer, const BackwardPass& pass) const {
  const ModelConfig& c = config_;
  const BlockWeights& w = pass.weights.blocks[static_cast<size_t>(layer)];
  const SavedBlock& s = pass.saved.blocks[static_cast<size_t>(layer)];
  ops_.Cast(pass.dresidual, pass.dy);
  if (SmoothsTokens(pass.weights.recipe())) {
    const Arena::Scope rows_scope(pass.arena);
    const TensorView scales = pass.arena.New(DType::kF32, 1, pass.batch.rows());
    const TensorView scaled = pass.arena.New(dtype_, pass.batch.rows(), c.intermediate_size);
    ops_.RowScales({.x = s.gate_up.Cols(c.intermediate_size, c.intermediate_size), .scale = scales});
    ops_.ScaleRows({.x = s.hidden, .scale = scales, .y = scaled});
    ops_.ScaleRows({.x = pass.dy, .scale = scales, .divide = true, .y = pass.dy});
    LinearGradients(layer, kDown, w.down, "mlp.down_proj", pass.dy, scaled, pass.dh, pass);
    ops_.ScaleRows({.x = pass.dh, .scale = scales, .y = pass.dh});
  } else {
    LinearGradients(layer, kDown, s.down ? *s.down : w.down, "mlp.down_proj", pass.dy, s.hidden, pass.dh, pass);
  }
  ops_.SwiGluBackward({.gate_up = s.gate_up, .dh = pass.dh, .dgate_up = pass.dgate_up});
  LinearGradients(layer, kGateUp, w.gate_up, "mlp.gate_proj", pass.dgate_up, s.middle_normed, pass.dnormed, pass);
  ops_.RmsNormBackward({.dy = pass.dnormed,
                        .x = s.middle,
                        .weight = w.post_attention_norm,
                        .inv_rms = s.middle_inv_rms,
                        .dx = pass.dresidual,
                        .dweight = pass.gradients.View(LayerPrefix(layer) + "post_attention_layernorm.weight")});
}

void Transformer::AttentionBackward(int64_t layer, const BackwardPass& pass) const {
  const ModelConfig& c = config_;
  const BlockWeights& w = pass.weights.blocks[static_cast<size_t>(layer)];
  const SavedBlock& s = pass.saved.blocks[static_cast<size_t>(layer)];
  const std::string prefix = LayerPrefix(layer);
  ops_.Cast(pass.dresidual, pass.dy);
  LinearGradients(layer, kAttentionOutput, w.attention_output, "self_attn.o_proj", pass.dy, s.attention,
                  pass.dattention, pass);
  ops_.AttentionBackward({.qkv = s.qkv,
                          .sequences = pass.batch.sequences,
                          .heads = c.heads,
                          .kv_heads = c.kv_heads,
                          .head_dim = c.head_dim,
                          .scale = AttentionScale(),
                          .window = c.sliding_window,
                          .out = s.attention,
                          .lse = s.lse,
                          .dout = pass.dattention,
                          .dqkv = pass.dqkv,
                          .selective = c.selective_attention,
                          .live_weight = pass.live_weight,
                          .live_tau = kLiveTau,
                          .gain = w.gain,
                          .dgain = c.selection_gain ? pass.gradients.View(SelectionGainName(layer)) : TensorView{}});
  RotaryBackwardArgs rotary{.forward = Rotary(w, pass.batch, c.qk_norm ? s.qkv_raw : s.qkv, {}),
                            .dqkv = pass.dqkv,
                            .dq_norm = {},
                            .dk_norm = {}};
  if (c.qk_norm) {
    rotary.dq_norm = pass.gradients.View(prefix + "self_attn.q_norm.weight");
    rotary.dk_norm = pass.gradients.View(prefix + "self_attn.k_norm.weight");
  }
  ops_.RotaryBackward(rotary);
  LinearGradients(layer, kQkv, w.qkv, "self_attn.q_proj", pass.dqkv, s.normed, pass.dnormed, pass);
  ops_.RmsNormBackward({.dy = pass.dnormed,
                        .x = s.input,
                        .weight = w.input_norm,
                        .inv_rms = s.input_inv_rms,
                        .dx = pass.dresidual,
                        .dweight = pass.gradients.View(prefix + "input_layernorm.weight")});
}

}  // namespace quern
