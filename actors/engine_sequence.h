#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "actors/engine.h"

namespace quern {

constexpr int64_t kPage = KvLayout::kPageTokens;
// Of the budget, for selections at the ends of pages.
constexpr int64_t kSelectionsPart = 16;

// What the engine knows of one sequence.
struct Engine::Sequence {
  int64_t id = 0;
  std::vector<int32_t> tokens;
  int64_t cached = 0;  // leading tokens whose keys and values are in the pages
  std::vector<KvPage*> pages;
  std::vector<std::vector<void*>> tables;  // the pages' memory, one table per model
  std::vector<Tensor> selections;  // of models with selective attention (SequenceRows::selection), and room for more
  // Under a compression, instead of pages: one a model. `prompt`: the tokens of the first generation's prompt.
  std::vector<std::unique_ptr<CompressedCache>> own;
  int64_t prompt = 0;
  int64_t reserved_bytes = 0;
  bool generating = false;
  GenerateOptions options;
  Completion completion;

  bool admitted() const { return !pages.empty() || !own.empty(); }
  // Of open() tokens, those that one step may read.
  int64_t StepTokens(int64_t left, bool to_page_end, bool to_last_of_prompt) const {
    int64_t count = std::min(open(), left);
    if (to_page_end) count = std::min(count, kPage - cached % kPage);
    if (own.empty()) return count;
    if (to_last_of_prompt && cached < prompt - 1) return std::min(count, prompt - 1 - cached);
    return std::min(count, cached < prompt ? prompt - cached : 1);
  }
  int64_t open() const { return static_cast<int64_t>(tokens.size()) - cached; }
  void Add(KvPage* page) {
    pages.push_back(page);
    tables.resize(page->data.size());
    for (size_t m = 0; m < tables.size(); ++m) tables[m].push_back(page->data[m]);
  }
};

}  // namespace quern
