// Who gets pages: admission, what is shared, preemption, and what one step computes.
#include <algorithm>

#include "actors/engine_sequence.h"
#include "base/strings.h"

namespace quern {

namespace {

// Tokens that must come from a prefix under way before a sequence waits for it.
constexpr int64_t kWorthWaiting = 16;
// Of the budget at most, for prompts under a compression: they give way to sequences.
constexpr int64_t kPromptsPart = 8;

int64_t PagesFor(int64_t positions) { return (positions + kPage - 1) / kPage; }

}  // namespace

int64_t Engine::CompressedBytes(const Sequence& s) const {
  const int64_t end = std::min(max_positions(), static_cast<int64_t>(s.tokens.size()) + s.options.max_new_tokens);
  int64_t bytes = 0;
  for (const KvLayout& layout : cache_->layouts())
    bytes += CompressedCache::MostBytes(layout, policy_->compression, s.prompt, end);
  return bytes;
}

// The last page first: what is nearer to the beginning is of use to more sequences and stays longer.
void Engine::DropPages(Sequence& sequence) {
  for (auto page = sequence.pages.rbegin(); page != sequence.pages.rend(); ++page) cache_->Release(**page);
  sequence.pages.clear();
  for (std::vector<void*>& table : sequence.tables) table.clear();
  sequence.own.clear();
  own_bytes_ -= sequence.reserved_bytes;
  sequence.reserved_bytes = 0;
  sequence.cached = 0;
}

bool Engine::EnsurePages(Sequence& s, int64_t positions) {
  if (!s.own.empty()) return true;
  while (static_cast<int64_t>(s.pages.size()) < PagesFor(positions)) {
    KvPage* page = cache_->Take(s.pages.empty() ? nullptr : s.pages.back());
    if (page == nullptr) return false;
    s.Add(page);
  }
  return true;
}

// Takes the pages of a sequence that is not in this step, its tokens are computed again later: of one between two
// generations, else of the youngest that was opened after `younger_than`.
bool Engine::Preempt(int64_t younger_than, int64_t keep) {
  Sequence* victim = nullptr;
  for (auto it = sequences_.rbegin(); it != sequences_.rend(); ++it) {
    Sequence& other = *it->second;
    if (other.id == keep || other.pages.empty() || (other.generating && other.id <= younger_than)) continue;
    if (std::any_of(planned_.begin(), planned_.end(), [&](const Planned& p) { return p.sequence == &other; })) continue;
    if (victim == nullptr || !other.generating) victim = &other;
    if (!other.generating) break;
  }
  if (victim == nullptr) return false;
  DropPages(*victim);
  ++preemptions_;
  return true;
}

// Whether a prompt that this step computes a part of begins like `s` for longer than `cached`: next step it is shared.
bool Engine::AwaitsPrefix(const Sequence& s, int64_t cached) const {
  for (const Planned& p : planned_) {
    const Sequence& other = *p.sequence;
    // Not for one that decodes: what it will have is not known, and what it has is in the cache.
    if (p.count == 1 && !other.completion.tokens.empty()) continue;
    const auto shared = [&](int64_t tokens) { return selective_ ? tokens / kPage * kPage : tokens; };
    if (shared(other.cached + p.count) < cached + kWorthWaiting) continue;
    const auto end = s.tokens.end() - 1;
    const auto mismatch = std::mismatch(s.tokens.begin(), end, other.tokens.begin(), other.tokens.end()).first;
    if (shared(mismatch - s.tokens.begin()) >= cached + kWorthWaiting) return true;
  }
  return false;
}

// Whether other sequences under a compression may come to use what this one reads of its prompt.
bool Engine::SharesPrompt(const Sequence& s) const {
  int64_t bytes = 0;
  for (const KvLayout& layout : cache_->layouts()) bytes += PagesFor(s.prompt) * layout.page_bytes();
  return options_.share_prefixes && s.prompt > kWorthWaiting && bytes <= options_.kv_bytes / kPromptsPart;
}

// Whether this step reads a part of the very prompt of `s`, under a compression.
bool Engine::AwaitsPrompt(const Sequence& s) const {
  return std::any_of(planned_.begin(), planned_.end(), [&](const Planned& p) {
    const Sequence& other = *p.sequence;
    return other.prompt == s.prompt && other.cached < s.prompt - 1 &&
           std::equal(s.tokens.begin(), s.tokens.begin() + s.prompt - 1, other.tokens.begin());
  });
}

void Engine::KeepPrompt(const Sequence& s) {
  int64_t bytes = 0;
  std::vector<std::unique_ptr<CompressedCache>> copies;
  for (const auto& cache : s.own) {
    copies.push_back(cache->Copy());
    bytes += cache->bytes();
  }
  kept_prompts_.Keep({s.tokens.begin(), s.tokens.begin() + s.cached}, std::move(copies), bytes);
  kept_prompts_.Shrink(std::min(options_.kv_bytes / kPromptsPart, options_.kv_bytes - own_bytes_));
}

// Sequences under a compression are admitted once there is room for the most they may need. What each keeps is its own,
// but equal prompts are read once: until its last token a prompt is whole.
Engine::Admission Engine::AdmitCompressed(Sequence& s) {
  if (SharesPrompt(s) && AwaitsPrompt(s)) return Admission::kAwaitsPrefix;
  const int64_t bytes = CompressedBytes(s);
  kept_prompts_.Shrink(std::max<int64_t>(0, options_.kv_bytes - own_bytes_ - bytes));
  if (own_bytes_ + bytes > options_.kv_bytes) {
    // Those between two generations are read again later.
    for (auto& [id, other] : sequences_)
      if (!other->generating) DropPages(*other);
    if (own_bytes_ + bytes > options_.kv_bytes) return Admission::kNoRoom;
  }
  if (const auto* kept = kept_prompts_.Find({s.tokens.begin(), s.tokens.begin() + s.prompt - 1}); kept != nullptr) {
    for (const auto& cache : *kept) s.own.push_back(cache->Copy());
    s.cached = s.prompt - 1;
    shared_tokens_ += s.cached;
  } else {
    for (const KvLayout& layout : cache_->layouts())
      s.own.push_back(std::make_unique<CompressedCache>(ops_, layout, policy_->compression, s.prompt));
  }
  s.reserved_bytes = bytes;
  own_bytes_ += bytes;
  return Admission::kAdmitted;
}

// Of a beginning that was found, what a model with selective attention can use.
void Engine::KeepToSelections(KvCache::Prefix& prefix) {
  if (prefix.tail != nullptr) cache_->Release(*prefix.tail);
  prefix.tail = nullptr;
  prefix.tail_tokens = 0;
  while (!prefix.pages.empty() && kept_selections_.Find(prefix.pages.back()->serial) == nullptr) {
    cache_->Release(*prefix.pages.back());
    prefix.pages.pop_back();
  }
}

// Room for the selection of as many pages as the sequence has.
TensorView Engine::GrowSelection(Sequence& s, size_t model) {
  if (s.selections.size() <= model) s.selections.resize(model + 1);
  Tensor& selection = s.selections[model];
  const int64_t elements = static_cast<int64_t>(s.pages.size()) * cache_->layouts()[model].selection_elements();
  if (selection.cols() < elements) {
    Tensor more(DType::kF32, 1, std::max(elements, 2 * selection.cols()), ops_.pool());
    if (selection.cols() > 0) ops_.Copy(selection, more.view().Cols(0, selection.cols()));
    selection = std::move(more);
  }
  return selection;
}

// Of a sequence whose last page has become full.
void Engine::KeepSelections(const Sequence& s) {
  std::vector<Tensor> selections(s.selections.size());
  int64_t bytes = 0;
  for (size_t m = 0; m < selections.size(); ++m) {
    const KvLayout& layout = cache_->layouts()[m];
    if (!layout.selective) continue;
    selections[m] = Tensor(DType::kF32, 1, s.cached / kPage * layout.selection_elements(), ops_.pool());
    ops_.Copy(s.selections[m].view().Cols(0, selections[m].cols()), selections[m]);
    bytes += selections[m].bytes();
  }
  kept_selections_.Keep(s.pages[static_cast<size_t>(s.cached / kPage) - 1]->serial, std::move(selections), bytes);
  kept_selections_.Shrink(options_.kv_bytes / kSelectionsPart);
}

// Gives a sequence without pages what the cache has of its beginning, where there is room for the rest.
Engine::Admission Engine::Admit(Sequence& s) {
  if (!policy_->compression.off()) return AdmitCompressed(s);
  KvCache::Prefix prefix;
  // The last token is always computed: its logits are what is asked for.
  if (options_.share_prefixes) prefix = cache_->Find({s.tokens.data(), s.tokens.size() - 1});
  if (selective_) KeepToSelections(prefix);
  for (KvPage* page : prefix.pages) s.Add(page);
  if (selective_ && !prefix.pages.empty()) {
    const std::vector<Tensor>& kept = *kept_selections_.Find(prefix.pages.back()->serial);
    for (size_t m = 0; m < kept.size(); ++m)
      if (kept[m].cols() > 0) ops_.Copy(kept[m], GrowSelection(s, m).Cols(0, kept[m].cols()));
  }
  s.cached = static_cast<int64_t>(s.pages.size()) * kPage;
  const auto undo = [&](Admission why) {
    if (prefix.tail != nullptr) cache_->Release(*prefix.tail);
    DropPages(s);
    return why;
  };
  if (options_.share_prefixes && AwaitsPrefix(s, s.cached + prefix.tail_tokens)) return undo(Admission::kAwaitsPrefix);
  const int64_t needed = PagesFor(static_cast<int64_t>(s.tokens.size()) + 1) - static_cast<int64_t>(s.pages.size());
  while (cache_->available_pages() < needed) {
    // Where nothing else can go on, this one goes on with what there is.
    if (Preempt(planned_.empty() ? 0 : s.id, s.id)) continue;
    if (planned_.empty()) break;
    return undo(Admission::kNoRoom);
  }
  if (prefix.tail != nullptr) {
    if (KvPage* page = cache_->Take(s.pages.empty() ? nullptr : s.pages.back()); page != nullptr) {
      cache_->CopyTail(*prefix.tail, prefix.tail_tokens, *page);
      s.Add(page);
      s.cached += prefix.tail_tokens;
    }
    cache_->Release(*prefix.tail);
  }
  shared_tokens_ += s.cached;
  return Admission::kAdmitted;
}

Status Engine::Schedule() {
  planned_.clear();
  int64_t left = options_.max_step_tokens;
  // Decodes first: they are one row each and keep everyone moving; then prompts in order of arrival.
  for (auto& [id, entry] : sequences_) {
    Sequence& s = *entry;
    if (left == 0) break;
    if (!s.generating || !s.admitted() || s.open() != 1) continue;
    bool fits = EnsurePages(s, s.cached + 1);
    while (!fits && Preempt(0, id)) fits = EnsurePages(s, s.cached + 1);
    if (!fits) continue;
    planned_.push_back({&s, 1});
    --left;
  }
  bool full = false;
  for (auto& [id, entry] : sequences_) {
    Sequence& s = *entry;
    if (left == 0) break;
    if (!s.generating || (s.admitted() && s.open() == 1)) continue;
    if (!s.admitted()) {
      // Nobody overtakes one that waits for room; those that have theirs go on, and give it back some time.
      if (full) continue;
      const Admission admission = Admit(s);
      full = admission == Admission::kNoRoom;
      if (admission != Admission::kAdmitted) continue;
    }
    const int64_t count = s.StepTokens(left, selective_ && options_.share_prefixes && s.own.empty(), SharesPrompt(s));
    bool fits = EnsurePages(s, s.cached + count);
    while (!fits && Preempt(planned_.empty() ? 0 : id, id)) fits = EnsurePages(s, s.cached + count);
    if (!fits) continue;
    planned_.push_back({&s, count});
    left -= count;
  }
  if (planned_.empty()) {
    return ResourceExhausted(StrCat("the KV cache budget of ", HumanBytes(static_cast<double>(options_.kv_bytes)), ", ",
                                    max_cached_tokens(), " tokens, does not hold a single sequence of ",
                                    policy_->label));
  }
  return {};
}

}  // namespace quern
