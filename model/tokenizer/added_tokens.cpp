#include "model/tokenizer/added_tokens.h"

#include <algorithm>

#include "base/log.h"
#include "base/strings.h"
#include "model/tokenizer/unicode.h"

namespace quern {
namespace {

bool EndsWithWord(std::string_view text) {
  if (text.empty()) return false;
  size_t pos = PreviousBoundary(text, text.size());
  return IsWordChar(NextCodePoint(text, &pos));
}

bool StartsWithWord(std::string_view text) {
  size_t pos = 0;
  return !text.empty() && IsWordChar(NextCodePoint(text, &pos));
}

Result<AddedToken> ReadToken(const Json& json, const std::string& where) {
  AddedToken token;
  QUERN_ASSIGN_OR_RETURN(token.content, JsonString(json, "content", "", where));
  QUERN_ASSIGN_OR_RETURN(const int64_t id, JsonInt(json, "id", -1, 0, Vocabulary::kMaxId, where));
  if (id < 0) return InvalidArgument(where + ": \"id\" is missing");
  token.id = static_cast<int32_t>(id);
  QUERN_ASSIGN_OR_RETURN(token.special, JsonBool(json, "special", false, where));
  QUERN_ASSIGN_OR_RETURN(token.single_word, JsonBool(json, "single_word", false, where));
  QUERN_ASSIGN_OR_RETURN(token.lstrip, JsonBool(json, "lstrip", false, where));
  QUERN_ASSIGN_OR_RETURN(token.rstrip, JsonBool(json, "rstrip", false, where));
  QUERN_ASSIGN_OR_RETURN(token.normalized, JsonBool(json, "normalized", !token.special, where));
  return token;
}

}  // namespace

void AddedTokens::Trie::Add(std::string_view content, int32_t index) {
  if (content.empty()) return;
  starts[static_cast<uint8_t>(content[0])] = true;
  uint32_t node = 0;
  for (const char c : content) {
    const auto [it, added] = children.emplace(static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(c),
                                              static_cast<uint32_t>(token.size()));
    if (added) token.push_back(-1);
    node = it->second;
  }
  if (token[node] < 0) token[node] = index;
}

int32_t AddedTokens::Trie::Longest(std::string_view text, size_t pos, size_t* end) const {
  int32_t best = -1;
  uint32_t node = 0;
  for (size_t i = pos; i < text.size(); ++i) {
    const auto it = children.find(static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(text[i]));
    if (it == children.end()) break;
    node = it->second;
    if (token[node] >= 0) {
      best = token[node];
      *end = i + 1;
    }
  }
  return best;
}

Result<AddedTokens> AddedTokens::FromJson(const Json& list, const Vocabulary& vocabulary,
                                          const TextNormalizer* normalizer, const std::string& where) {
  AddedTokens added;
  if (list.is_null()) return added;
  if (!list.is_array()) return InvalidArgument(where + ": \"added_tokens\" must be a list");
  std::vector<AddedToken> tokens;
  for (size_t i = 0; i < list.size(); ++i) {
    QUERN_ASSIGN_OR_RETURN(AddedToken token, ReadToken(list[i], StrCat(where, ": added token ", i)));
    tokens.push_back(std::move(token));
  }
  std::stable_sort(tokens.begin(), tokens.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  std::unordered_map<std::string, size_t> known;
  int64_t next_id = static_cast<int64_t>(vocabulary.size());
  for (AddedToken& token : tokens) {
    if (token.content.empty()) continue;
    int64_t id = vocabulary.Find(token.content);
    const auto it = known.find(token.content);
    if (id < 0) id = it != known.end() ? added.tokens_[it->second].id : next_id;
    if (id > Vocabulary::kMaxId) return InvalidArgument(where + ": too many added tokens");
    if (id != token.id)
      LogWarning(StrCat(where, ": added token \"", token.content, "\" is listed with id ", token.id, " but gets ", id));
    next_id = std::max(next_id, id + 1);
    token.id = static_cast<int32_t>(id);
    if (it != known.end()) {
      added.tokens_[it->second] = token;
    } else {
      known.emplace(token.content, added.tokens_.size());
      added.tokens_.push_back(std::move(token));
    }
  }
  for (const bool special : {true, false}) {  // of equal contents the special token counts
    for (size_t i = 0; i < added.tokens_.size(); ++i) {
      const AddedToken& token = added.tokens_[i];
      if (token.special != special) continue;
      std::string content = token.content;
      bool at_start = false;
      if (token.normalized && normalizer != nullptr) normalizer->Apply(&content, &at_start);
      (token.normalized ? added.normalized_ : added.raw_).Add(content, static_cast<int32_t>(i));
    }
  }
  return added;
}

void AddedTokens::Split(std::string_view text, bool normalized, std::vector<TextPart>* parts) const {
  const Trie& trie = normalized ? normalized_ : raw_;
  size_t done = 0;  // text before here is in `parts`
  if (!trie.empty()) {
    for (size_t pos = 0; pos < text.size();) {
      size_t begin = pos, end = pos;
      const int32_t index = trie.starts[static_cast<uint8_t>(text[pos])] ? trie.Longest(text, pos, &end) : -1;
      if (index < 0) {
        ++pos;
        continue;
      }
      pos = end;
      const AddedToken& token = tokens_[index];
      if (token.single_word && (EndsWithWord(text.substr(0, begin)) || StartsWithWord(text.substr(end)))) continue;
      while (token.lstrip && begin > done) {
        const size_t previous = PreviousBoundary(text, begin);
        size_t next = previous;
        if (!IsWhiteSpace(NextCodePoint(text, &next))) break;
        begin = previous;
      }
      begin = std::max(begin, done);
      while (token.rstrip && end < text.size()) {
        size_t next = end;
        if (!IsWhiteSpace(NextCodePoint(text, &next))) break;
        end = next;
      }
      if (begin > done) parts->push_back({done, begin, -1});
      parts->push_back({begin, end, token.id});
      done = end;
    }
  }
  if (done < text.size()) parts->push_back({done, text.size(), -1});
}

}  // namespace quern
