#include "actors/engine.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "actors/engine_sequence.h"
#include "methods/policy_log_probs.h"

namespace quern {

const char* FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kContext: return "context";
    case FinishReason::kDeadline: return "deadline";
  }
  return "?";
}

namespace {

// Where both are the same weights, keys and values are, too.
bool SameWeights(const Policy& a, const Policy& b) {
  if (a.models.size() != b.models.size() || a.compression != b.compression) return false;
  for (size_t m = 0; m < a.models.size(); ++m) {
    const ServedModel& x = *a.models[m];
    const ServedModel& y = *b.models[m];
    if (&x == &y) continue;
    if (x.content.empty() || x.content != y.content || x.transformer.dtype() != y.transformer.dtype()) return false;
  }
  return true;
}

bool SameLayouts(const std::vector<KvLayout>& a, const std::vector<KvLayout>& b) {
  const auto same = [](const KvLayout& x, const KvLayout& y) {
    return x.dtype == y.dtype && x.layers == y.layers && x.kv_heads == y.kv_heads && x.head_dim == y.head_dim &&
           x.selective == y.selective;
  };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), same);
}

// The `count` likeliest ids of a row, the lowest first among equals.
std::vector<TokenLogProb> Likeliest(std::span<const float> logits, float lse, int32_t count) {
  std::vector<TokenLogProb> top;
  const auto before = [](const TokenLogProb& a, const TokenLogProb& b) {
    return a.log_prob != b.log_prob ? a.log_prob > b.log_prob : a.id < b.id;
  };
  for (size_t id = 0; id < logits.size(); ++id) {
    const TokenLogProb entry{static_cast<int32_t>(id), logits[id] - lse};
    if (static_cast<int32_t>(top.size()) == count && !before(entry, top.back())) continue;
    if (static_cast<int32_t>(top.size()) == count) top.pop_back();
    top.insert(std::upper_bound(top.begin(), top.end(), entry, before), entry);
  }
  return top;
}

// What is drawn: a row of ids, a row of log-probabilities, which come to the host together.
TensorView LogProbsOf(const TensorView& drawn) {
  TensorView out = drawn.Rows(1, 1);
  out.dtype = DType::kF32;
  return out;
}

}  // namespace

Engine::Engine(Ops& ops, const EngineOptions& options)
    : ops_(ops), options_(options), arena_(ops.memory()), host_(ops.staging()) {}
Engine::~Engine() = default;

void Engine::SetPolicy(std::shared_ptr<const Policy> policy) {
  QUERN_CHECK(policy != nullptr && !policy->models.empty() && policy->head != nullptr);
  QUERN_CHECK(policy->head->models() == static_cast<int>(policy->models.size()));
  if (policy_ != nullptr && SameWeights(*policy_, *policy)) {
    policy_ = std::move(policy);
    return;
  }
  for (auto& [id, sequence] : sequences_) DropPages(*sequence);
  policy_ = std::move(policy);
  std::vector<KvLayout> layouts;
  selective_ = false;
  for (const auto& model : policy_->models) {
    layouts.push_back(model->transformer.kv_layout());
    selective_ = selective_ || layouts.back().selective;
  }
  kept_selections_.Clear();
  kept_prompts_.Clear();
  if (cache_ != nullptr && SameLayouts(cache_->layouts(), layouts)) {
    cache_->Forget();
  } else {
    cache_.reset();  // its memory goes before the new one's comes
    const int64_t selections = selective_ && options_.share_prefixes ? options_.kv_bytes / kSelectionsPart : 0;
    cache_ =
        std::make_unique<KvCache>(ops_, std::move(layouts), options_.kv_bytes - selections, options_.share_prefixes);
  }
}

int64_t Engine::Open() {
  auto sequence = std::make_unique<Sequence>();
  sequence->id = next_id_++;
  const int64_t id = sequence->id;
  sequences_.emplace(id, std::move(sequence));
  return id;
}

void Engine::Extend(int64_t sequence, std::span<const int32_t> tokens) {
  Sequence& s = *sequences_.at(sequence);
  QUERN_CHECK(!s.generating);
  s.tokens.insert(s.tokens.end(), tokens.begin(), tokens.end());
}

// What a sequence under a compression may come to need until its generation ends.
void Engine::Generate(int64_t sequence, GenerateOptions options) {
  Sequence& s = *sequences_.at(sequence);
  QUERN_CHECK(!s.generating && !s.tokens.empty());
  s.options = std::move(options);
  s.completion = {};
  s.completion.sequence = sequence;
  s.generating = true;
  if (s.prompt == 0) s.prompt = static_cast<int64_t>(s.tokens.size());
  if (s.own.empty()) return;
  const int64_t more = CompressedBytes(s) - s.reserved_bytes;
  kept_prompts_.Shrink(std::max<int64_t>(0, options_.kv_bytes - own_bytes_ - more));
  if (own_bytes_ + more > options_.kv_bytes) return DropPages(s);
  s.reserved_bytes += more;
  own_bytes_ += more;
}

void Engine::Close(int64_t sequence) {
  DropPages(*sequences_.at(sequence));
  sequences_.erase(sequence);
}

const std::vector<int32_t>& Engine::tokens(int64_t sequence) const { return sequences_.at(sequence)->tokens; }
const Completion& Engine::progress(int64_t sequence) const { return sequences_.at(sequence)->completion; }

int64_t Engine::max_positions() const {
  QUERN_CHECK(policy_ != nullptr);
  int64_t least = policy_->models[0]->transformer.max_positions();
  for (const auto& model : policy_->models) least = std::min(least, model->transformer.max_positions());
  return least;
}

int64_t Engine::max_cached_tokens() const {
  QUERN_CHECK(cache_ != nullptr);
  return cache_->max_pages() * kPage;
}

bool Engine::HasWork() const {
  return std::any_of(sequences_.begin(), sequences_.end(), [](const auto& entry) { return entry.second->generating; });
}

// Whether the backend draws the sequence's tokens without their logits in memory.
bool Engine::DrawsFromHidden(const Sequence& s) const {
  return ops_.draws() && policy_->head->copies() && s.options.sampling.plain();
}

// Computes every planned sequence and draws for those that are computed to their end (`sampled_`), where the backend
// does; the policy's logits of the rest, and of those whose likeliest ids are asked for.
TensorView Engine::PolicyLogits() {
  batch_.Clear();
  sampled_.clear();
  drawn_rows_.clear();
  logits_rows_.clear();
  batch_.wanted.emplace();
  for (const Planned& p : planned_) {
    Sequence& s = *p.sequence;
    batch_.Add(s.tokens.data() + s.cached, p.count, s.cached, nullptr);
    if (s.open() != p.count) continue;
    const bool draws = DrawsFromHidden(s);
    if (draws) drawn_rows_.push_back(std::ssize(sampled_));
    if (!draws || s.options.top_log_probs > 0) logits_rows_.push_back(std::ssize(sampled_));
    sampled_.push_back(&s);
    batch_.wanted->push_back(batch_.rows() - 1);
  }
  const auto n = static_cast<int64_t>(sampled_.size());
  for (const Planned& p : planned_)
    for (const auto& cache : p.sequence->own) cache->Reserve(p.count);
  // A row for every sequence and nothing else: the calls of the last such step.
  const bool decodes = n == batch_.rows();
  if (decodes) ops_.BeginStep(static_cast<uint64_t>(n));
  std::vector<TensorView> model_logits;
  for (size_t m = 0; m < policy_->models.size(); ++m) {
    const ServedModel& model = *policy_->models[m];
    const KvLayout& layout = cache_->layouts()[m];
    KvView kv{.layout = layout};
    if (policy_->compression.off()) {
      for (size_t i = 0; i < planned_.size(); ++i) {
        Sequence& s = *planned_[i].sequence;
        batch_.sequences[i].pages = s.tables[m].data();
        batch_.sequences[i].selection = layout.selective ? GrowSelection(s, m).data : nullptr;
      }
    } else {
      std::vector<CompressedCache*> caches;
      for (const Planned& p : planned_) caches.push_back(p.sequence->own[m].get());
      kv = CompressedView(layout, policy_->compression, caches, batch_);
    }
    const TensorView hidden = arena_.New(model.transformer.dtype(), n, model.transformer.config().hidden_size);
    model.transformer.Forward(model.weights, batch_, kv, arena_, hidden);
    if (!drawn_rows_.empty()) Draw(model, Gathered(hidden, drawn_rows_));
    if (logits_rows_.empty()) continue;
    const TensorView rest = Gathered(hidden, logits_rows_);
    const TensorView logits = arena_.New(DType::kF32, rest.rows, model.transformer.config().vocab_size);
    model.transformer.Logits(model.weights, rest, logits);
    model_logits.push_back(logits);
  }
  if (decodes) ops_.EndStep();
  for (const Planned& p : planned_) {
    Sequence& s = *p.sequence;
    const bool decode = p.count == 1 && !s.completion.tokens.empty();
    prompt_tokens_ += decode ? 0 : p.count;
    if (!s.own.empty()) {
      for (const auto& cache : s.own) cache->Advance(p.count);
      s.cached += p.count;
      if (s.cached == s.prompt - 1 && SharesPrompt(s)) KeepPrompt(s);
      continue;
    }
    for (int64_t left = p.count; left > 0;) {
      const int64_t slot = s.cached % kPage;
      const int64_t count = std::min(left, kPage - slot);
      cache_->Fill(*s.pages[static_cast<size_t>(s.cached / kPage)], s.tokens.data() + s.cached, count);
      s.cached += count;
      left -= count;
    }
    if (selective_ && options_.share_prefixes && s.cached % kPage == 0) KeepSelections(s);
  }
  KeepDrawn();
  if (logits_rows_.empty()) return {};
  return Combined(model_logits);
}

// Some rows of x, until the step ends.
TensorView Engine::Gathered(const TensorView& x, const std::vector<int64_t>& rows) {
  if (std::ssize(rows) == x.rows) return x;
  const TensorView y = arena_.New(x.dtype, std::ssize(rows), x.cols);
  if (!rows.empty()) ops_.GatherRows({.x = x, .rows = rows, .y = y});
  return y;
}

// x, or a copy until the step ends.
TensorView Engine::OnHost(const TensorView& x) {
  if (ops_.memory() == nullptr) return x;
  const TensorView copy = host_.New(x.dtype, x.rows, x.cols);
  ops_.Download(x, copy);
  return copy;
}

// The policy's logits, given those of its models.
TensorView Engine::Combined(const std::vector<TensorView>& model_logits) {
  const PolicyHead& head = *policy_->head;
  if (head.copies()) {
    if (head.never() >= 0) ops_.Fill(model_logits[0].Cols(head.never(), 1), -std::numeric_limits<float>::infinity());
    return model_logits[0];
  }
  std::vector<TensorView> rows;
  for (const TensorView& logits : model_logits) rows.push_back(OnHost(logits));
  const TensorView out = arena_.New(DType::kF32, rows[0].rows, rows[0].cols);
  const bool here = ops_.memory() == nullptr;
  const TensorView combined = here ? out : host_.New(out.dtype, out.rows, out.cols);
  ops_.ForEach(out.rows, [&](int64_t i) {
    std::vector<std::span<const float>> inputs;
    for (const TensorView& logits : rows) inputs.emplace_back(logits.Row<float>(i), static_cast<size_t>(logits.cols));
    head.Combine(inputs, {combined.Row<float>(i), static_cast<size_t>(combined.cols)});
  });
  if (!here) ops_.Upload(combined, out);
  return out;
}

void Engine::Keep(Sequence& s, int32_t id, float log_prob) {
  s.tokens.push_back(id);
  s.completion.tokens.push_back(id);
  s.completion.log_probs.push_back(log_prob);
  ++generated_tokens_;
}

// Draws a token for every row of `hidden`, one for each of `drawn_rows_`.
void Engine::Draw(const ServedModel& model, const TensorView& hidden) {
  std::vector<DrawUniforms> uniforms;
  for (const int64_t row : drawn_rows_) {
    const Sequence& s = *sampled_[static_cast<size_t>(row)];
    uniforms.push_back(
        SamplingUniforms(s.options.sampling, s.options.seed, static_cast<int64_t>(s.completion.tokens.size())));
  }
  drawn_ = arena_.New(DType::kI32, 2, hidden.rows);
  model.transformer.Draw(model.weights, hidden,
                         {.a = {},
                          .never = policy_->head->never(),
                          .uniforms = uniforms,
                          .ids = drawn_.Rows(0, 1),
                          .log_prob = LogProbsOf(drawn_)});
}

void Engine::KeepDrawn() {
  if (drawn_rows_.empty()) return;
  const TensorView drawn = OnHost(drawn_);
  for (size_t i = 0; i < drawn_rows_.size(); ++i) {
    Sequence& s = *sampled_[static_cast<size_t>(drawn_rows_[i])];
    const int32_t id = drawn.Row<int32_t>(0)[i];
    QUERN_CHECK(id >= 0, "no token may be sampled");
    Keep(s, id, LogProbsOf(drawn).Row<float>(0)[i]);
    if (!s.options.sampling_masks) continue;
    s.completion.masks.emplace_back();
    if (s.options.sampling.temperature <= 0) s.completion.masks.back().push_back(id);
  }
}

// Draws a token for every row of `logits`, one for each of `logits_rows_`, that has none yet.
void Engine::Sample(const TensorView& logits) {
  const int64_t n = logits.rows;
  std::vector<int32_t> ids(static_cast<size_t>(n));
  const auto sampled = [&](int64_t i) -> Sequence& {
    return *sampled_[static_cast<size_t>(logits_rows_[static_cast<size_t>(i)])];
  };
  for (int64_t i = 0; i < n; ++i)
    if (sampled(i).options.sampling_masks && !DrawsFromHidden(sampled(i))) sampled(i).completion.masks.emplace_back();
  const TensorView rows = OnHost(logits);
  ops_.ForEach(n, [&](int64_t i) {
    thread_local std::vector<float> scratch;
    Sequence& s = sampled(i);
    if (DrawsFromHidden(s)) {
      ids[static_cast<size_t>(i)] = s.tokens.back();
      return;
    }
    const std::span<const float> row(rows.Row<float>(i), static_cast<size_t>(rows.cols));
    const float uniform = SamplingUniform(s.options.seed, static_cast<int64_t>(s.completion.tokens.size()));
    std::vector<int32_t>* kept = s.options.sampling_masks ? &s.completion.masks.back() : nullptr;
    ids[static_cast<size_t>(i)] = SampleToken(row, s.options.sampling, s.tokens, uniform, scratch, kept);
  });
  const TensorView numbers = arena_.New(DType::kF32, 2, n);
  ops_.LogSoftmax({.logits = logits,
                   .targets = ids,
                   .lse = numbers.Rows(0, 1),
                   .log_prob = numbers.Rows(1, 1),
                   .mean_log_prob = {},
                   .entropy = {}});
  const TensorView of_rows = OnHost(numbers);
  const float *lse = of_rows.Row<float>(0), *log_prob = of_rows.Row<float>(1);
  for (int64_t i = 0; i < n; ++i) {
    Sequence& s = sampled(i);
    if (!DrawsFromHidden(s)) Keep(s, ids[static_cast<size_t>(i)], log_prob[i]);
    if (s.options.top_log_probs > 0) {
      const std::span<const float> row(rows.Row<float>(i), static_cast<size_t>(rows.cols));
      s.completion.top.push_back(Likeliest(row, lse[i], s.options.top_log_probs));
    }
  }
}

std::vector<float> Engine::WholeLogProbs(std::span<const int32_t> tokens) {
  if (tokens.size() < 2) return {};
  TokenBatch batch;
  batch.Add(tokens.data(), static_cast<int64_t>(tokens.size()), 0, nullptr);
  std::vector<int64_t> rows(tokens.size() - 1);
  std::iota(rows.begin(), rows.end(), 0);
  std::vector<PolicyModel> models;
  for (const auto& model : policy_->models) models.push_back({&model->transformer, &model->weights});
  return PolicyLogProbs(ops_, models, *policy_->head, batch, rows, tokens.subspan(1), arena_);
}

bool Engine::Finish(Sequence& s, Completion& completion) {
  const std::vector<int32_t>& tokens = s.completion.tokens;
  const GenerateOptions& o = s.options;
  const bool stopped =
      std::find(o.stop_ids.begin(), o.stop_ids.end(), tokens.back()) != o.stop_ids.end() || (o.stop && o.stop(tokens));
  FinishReason reason = FinishReason::kStop;
  if (!stopped) {
    if (static_cast<int64_t>(tokens.size()) >= o.max_new_tokens) {
      reason = FinishReason::kLength;
    } else if (static_cast<int64_t>(s.tokens.size()) >= max_positions()) {
      reason = FinishReason::kContext;
    } else {
      return false;
    }
  }
  s.completion.finish_reason = reason;
  completion = std::move(s.completion);
  s.generating = false;
  s.options = {};
  return true;
}

// Generations that end without a further token.
void Engine::FinishEarly(std::vector<Completion>& finished) {
  const int64_t positions = max_positions();
  for (auto& [id, entry] : sequences_) {
    Sequence& s = *entry;
    if (!s.generating) continue;
    if (static_cast<int64_t>(s.tokens.size()) >= positions) {
      s.completion.finish_reason = FinishReason::kContext;
    } else if (s.options.max_new_tokens <= 0) {
      s.completion.finish_reason = FinishReason::kLength;
    } else if (s.options.deadline.has_value() && s.options.deadline->Expired()) {
      s.completion.finish_reason = FinishReason::kDeadline;
    } else {
      continue;
    }
    s.generating = false;
    finished.push_back(std::move(s.completion));
  }
}

Result<std::vector<Completion>> Engine::Step() {
  QUERN_CHECK(policy_ != nullptr);
  std::vector<Completion> finished;
  FinishEarly(finished);
  if (!HasWork()) return finished;
  const Arena::Scope scope(arena_), host_scope(host_);
  QUERN_RETURN_IF_ERROR(Schedule());
  const TensorView logits = PolicyLogits();
  if (sampled_.empty()) return finished;
  if (logits.rows > 0) Sample(logits);
  for (Sequence* s : sampled_) {
    Completion completion;
    if (Finish(*s, completion)) finished.push_back(std::move(completion));
  }
  std::sort(finished.begin(), finished.end(),
            [](const Completion& a, const Completion& b) { return a.sequence < b.sequence; });
  return finished;
}

}  // namespace quern
