#include "actors/engine.h"

#include <algorithm>

#include "base/strings.h"

namespace quern {

const char* FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kContext: return "context";
  }
  return "?";
}

struct Engine::Sequence {
  int64_t id = 0;
  std::vector<int32_t> tokens;
  int64_t cached = 0;                     // leading tokens whose keys and values are in the pages
  std::vector<std::vector<void*>> pages;  // one table per model
  bool generating = false;
  GenerateOptions options;
  Completion completion;
};

struct Engine::Planned {
  Sequence* sequence = nullptr;
  int64_t count = 0;  // tokens from `cached` that this step computes
};

Engine::Engine(Ops& ops, const EngineOptions& options) : ops_(ops), options_(options) {}
Engine::~Engine() = default;

void Engine::SetPolicy(std::shared_ptr<const Policy> policy) {
  QUERN_CHECK(policy != nullptr && !policy->models.empty() && policy->head != nullptr);
  QUERN_CHECK(policy->head->models() == static_cast<int>(policy->models.size()));
  for (auto& [id, sequence] : sequences_) DropCache(*sequence);
  policy_ = std::move(policy);
  // A sequence's pages number the same in every model, so the budget is shared out by page size.
  int64_t bytes_per_page = 0;
  for (const auto& model : policy_->models) bytes_per_page += model->transformer.kv_layout().page_bytes();
  const int64_t max_pages = std::max<int64_t>(1, options_.kv_bytes / bytes_per_page);
  const auto same = [](const KvLayout& a, const KvLayout& b) {
    return a.dtype == b.dtype && a.layers == b.layers && a.kv_heads == b.kv_heads && a.head_dim == b.head_dim;
  };
  bool keep = pools_.size() == policy_->models.size();
  for (size_t m = 0; keep && m < pools_.size(); ++m) {
    keep = same(pools_[m].layout(), policy_->models[m]->transformer.kv_layout());
  }
  if (!keep) {
    pools_.clear();
    for (const auto& model : policy_->models) pools_.emplace_back(model->transformer.kv_layout(), max_pages);
  }
  for (auto& [id, sequence] : sequences_) sequence->pages.resize(pools_.size());
}

int64_t Engine::Open() {
  auto sequence = std::make_unique<Sequence>();
  sequence->id = next_id_++;
  sequence->pages.resize(pools_.size());
  const int64_t id = sequence->id;
  sequences_.emplace(id, std::move(sequence));
  return id;
}

void Engine::Extend(int64_t sequence, std::span<const int32_t> tokens) {
  Sequence& s = *sequences_.at(sequence);
  QUERN_CHECK(!s.generating);
  s.tokens.insert(s.tokens.end(), tokens.begin(), tokens.end());
}

void Engine::Generate(int64_t sequence, GenerateOptions options) {
  Sequence& s = *sequences_.at(sequence);
  QUERN_CHECK(!s.generating && !s.tokens.empty());
  s.options = std::move(options);
  s.completion = {};
  s.completion.sequence = sequence;
  s.generating = true;
}

void Engine::Close(int64_t sequence) {
  DropCache(*sequences_.at(sequence));
  sequences_.erase(sequence);
}

const std::vector<int32_t>& Engine::tokens(int64_t sequence) const { return sequences_.at(sequence)->tokens; }

int64_t Engine::max_positions() const {
  QUERN_CHECK(policy_ != nullptr);
  int64_t least = policy_->models[0]->transformer.max_positions();
  for (const auto& model : policy_->models) least = std::min(least, model->transformer.max_positions());
  return least;
}

bool Engine::HasWork() const {
  return std::any_of(sequences_.begin(), sequences_.end(), [](const auto& entry) { return entry.second->generating; });
}

void Engine::DropCache(Sequence& sequence) {
  for (size_t m = 0; m < sequence.pages.size(); ++m) {
    for (void* page : sequence.pages[m]) pools_[m].Give(page);
    sequence.pages[m].clear();
  }
  sequence.cached = 0;
}

bool Engine::EnsurePages(Sequence& sequence, int64_t positions) {
  const auto needed = static_cast<size_t>((positions + KvLayout::kPageTokens - 1) / KvLayout::kPageTokens);
  for (size_t m = 0; m < pools_.size(); ++m) {
    while (sequence.pages[m].size() < needed) {
      void* page = pools_[m].Take();
      if (page == nullptr) return false;
      sequence.pages[m].push_back(page);
    }
  }
  return true;
}

// Takes the cache of the youngest sequence that is not in this step; its tokens are computed again later.
bool Engine::PreemptOther(int64_t keep, const std::vector<Planned>& planned) {
  for (auto it = sequences_.rbegin(); it != sequences_.rend(); ++it) {
    Sequence& other = *it->second;
    if (other.id == keep || other.pages.empty() || other.pages[0].empty()) continue;
    const bool in_step =
        std::any_of(planned.begin(), planned.end(), [&](const Planned& p) { return p.sequence == &other; });
    if (in_step) continue;
    DropCache(other);
    return true;
  }
  return false;
}

Status Engine::Schedule(std::vector<Planned>& planned) {
  int64_t left = options_.max_step_tokens;
  // Decodes first: they are one row each and keep everyone moving; then prompts in order of arrival.
  for (const bool decode : {true, false}) {
    for (auto& [id, entry] : sequences_) {
      Sequence& s = *entry;
      if (!s.generating || left == 0) continue;
      const int64_t open = static_cast<int64_t>(s.tokens.size()) - s.cached;
      if ((open == 1) != decode) continue;
      const int64_t count = std::min(open, left);
      bool fits = EnsurePages(s, s.cached + count);
      while (!fits && PreemptOther(id, planned)) fits = EnsurePages(s, s.cached + count);
      if (!fits) continue;
      planned.push_back({&s, count});
      left -= count;
    }
  }
  if (planned.empty()) {
    return ResourceExhausted(StrCat("the KV cache budget of ", HumanBytes(static_cast<double>(options_.kv_bytes)),
                                    " does not hold a single sequence of ", policy_->label));
  }
  return {};
}

TensorView Engine::PolicyLogits(const std::vector<Planned>& planned, std::vector<size_t>& sampled) {
  std::vector<int64_t> rows;
  int64_t row = 0;
  for (size_t i = 0; i < planned.size(); ++i) {
    const Planned& p = planned[i];
    row += p.count;
    if (p.sequence->cached + p.count == static_cast<int64_t>(p.sequence->tokens.size())) {
      sampled.push_back(i);
      rows.push_back(row - 1);
    }
  }
  const auto n = static_cast<int64_t>(rows.size());
  std::vector<TensorView> model_logits;
  for (size_t m = 0; m < pools_.size(); ++m) {
    const ServedModel& model = *policy_->models[m];
    TokenBatch batch;
    for (const Planned& p : planned) {
      Sequence& s = *p.sequence;
      batch.Add(s.tokens.data() + s.cached, p.count, s.cached, s.pages[m].data());
    }
    const TensorView hidden =
        arena_.New(model.transformer.dtype(), batch.rows(), model.transformer.config().hidden_size);
    model.transformer.Forward(model.weights, batch, {model.transformer.kv_layout(), false}, arena_, hidden);
    if (n == 0) continue;
    TensorView gathered = hidden;
    if (n != hidden.rows) {
      gathered = arena_.New(hidden.dtype, n, hidden.cols);
      ops_.GatherRows({.x = hidden, .rows = rows, .y = gathered});
    }
    const TensorView logits = arena_.New(DType::kF32, n, model.transformer.config().vocab_size);
    model.transformer.Logits(model.weights, gathered, logits);
    model_logits.push_back(logits);
  }
  if (n == 0) return {};
  if (policy_->head->copies()) return model_logits[0];
  const TensorView out = arena_.New(DType::kF32, n, model_logits[0].cols);
  ops_.ForEach(n, [&](int64_t i) {
    std::vector<std::span<const float>> inputs;
    for (const TensorView& logits : model_logits) {
      inputs.emplace_back(logits.Row<float>(i), static_cast<size_t>(logits.cols));
    }
    policy_->head->Combine(inputs, {out.Row<float>(i), static_cast<size_t>(out.cols)});
  });
  return out;
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

Result<std::vector<Completion>> Engine::Step() {
  QUERN_CHECK(policy_ != nullptr);
  std::vector<Completion> finished;
  for (auto& [id, sequence] : sequences_) {
    // Nothing can be generated past the last position; the empty completion says so.
    if (sequence->generating &&
        (static_cast<int64_t>(sequence->tokens.size()) >= max_positions() || sequence->options.max_new_tokens <= 0)) {
      const bool full = static_cast<int64_t>(sequence->tokens.size()) >= max_positions();
      sequence->completion.finish_reason = full ? FinishReason::kContext : FinishReason::kLength;
      sequence->generating = false;
      finished.push_back(std::move(sequence->completion));
    }
  }
  if (!HasWork()) return finished;
  const Arena::Scope scope(arena_);
  std::vector<Planned> planned;
  QUERN_RETURN_IF_ERROR(Schedule(planned));
  std::vector<size_t> sampled;
  const TensorView logits = PolicyLogits(planned, sampled);
  for (const Planned& p : planned) {
    const bool decode = p.count == 1 && !p.sequence->completion.tokens.empty();
    prompt_tokens_ += decode ? 0 : p.count;
    p.sequence->cached += p.count;
  }
  if (sampled.empty()) return finished;

  const auto n = static_cast<int64_t>(sampled.size());
  std::vector<int32_t> drawn(sampled.size());
  ops_.ForEach(n, [&](int64_t i) {
    thread_local std::vector<float> scratch;
    const Sequence& s = *planned[sampled[static_cast<size_t>(i)]].sequence;
    const std::span<const float> row(logits.Row<float>(i), static_cast<size_t>(logits.cols));
    const float uniform = SamplingUniform(s.options.seed, static_cast<int64_t>(s.completion.tokens.size()));
    drawn[static_cast<size_t>(i)] = SampleToken(row, s.options.sampling, s.tokens, uniform, scratch);
  });
  const TensorView lse = arena_.New(DType::kF32, 1, n);
  const TensorView log_prob = arena_.New(DType::kF32, 1, n);
  ops_.LogSoftmax(
      {.logits = logits, .targets = drawn, .lse = lse, .log_prob = log_prob, .mean_log_prob = {}, .entropy = {}});
  for (size_t i = 0; i < sampled.size(); ++i) {
    Sequence& s = *planned[sampled[i]].sequence;
    s.tokens.push_back(drawn[i]);
    s.completion.tokens.push_back(drawn[i]);
    s.completion.log_probs.push_back(log_prob.Row<float>(0)[i]);
    ++generated_tokens_;
    Completion completion;
    if (Finish(s, completion)) finished.push_back(std::move(completion));
  }
  std::sort(finished.begin(), finished.end(),
            [](const Completion& a, const Completion& b) { return a.sequence < b.sequence; });
  return finished;
}

}  // namespace quern
