#include "model/tokenizer/pre_tokenizer.h"

#include <algorithm>

#include "base/strings.h"
#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/metaspace.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/unicode.h"

namespace quern {
namespace {

using Piece = PieceList::Piece;

// GPT-2's words (openai/gpt-2, encoder.py).
constexpr char kGpt2Words[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct Span {
  size_t begin, end;
  bool match;
};

// Joins spans as `behavior` says; with kRemoved matches disappear.
void Combine(Behavior behavior, std::vector<Span>* spans) {
  if (behavior == Behavior::kIsolated) return;
  if (behavior == Behavior::kRemoved) {
    std::erase_if(*spans, [](const Span& span) { return span.match; });
    return;
  }
  const bool backwards = behavior == Behavior::kMergedWithNext;
  if (backwards) std::reverse(spans->begin(), spans->end());
  std::vector<Span> joined;
  bool previous_match = false;
  for (const Span& span : *spans) {
    const bool join =
        behavior == Behavior::kContiguous ? span.match == previous_match : (span.match && !previous_match);
    previous_match = span.match;
    if (!join || joined.empty()) {
      joined.push_back(span);
    } else if (backwards) {
      joined.back().begin = span.begin;
    } else {
      joined.back().end = span.end;
    }
  }
  if (backwards) std::reverse(joined.begin(), joined.end());
  *spans = std::move(joined);
}

// Cuts every piece at the matches that `find(text, &matches)` gives.
template <typename Find>
void SplitPieces(PieceList* list, Behavior behavior, bool invert, const Find& find) {
  std::vector<Piece> out;
  out.reserve(list->pieces.size() * 2);
  std::vector<Match> matches;
  std::vector<Span> spans;
  for (const Piece& piece : list->pieces) {
    matches.clear();
    spans.clear();
    find(list->View(piece), &matches);
    size_t from = 0;
    for (const Match& match : matches) {
      if (match.begin != from) spans.push_back({from, match.begin, invert});
      spans.push_back({match.begin, match.end, !invert});
      from = match.end;
    }
    const size_t size = piece.end - piece.begin;
    if (from != size) spans.push_back({from, size, invert});
    Combine(behavior, &spans);
    for (const Span& span : spans)
      if (span.end > span.begin)
        out.push_back({piece.begin + span.begin, piece.begin + span.end, piece.at_start && span.begin == 0});
  }
  list->pieces = std::move(out);
}

// Every character for which `is(c)` holds is one match.
template <typename Is>
void SplitAtCharacters(PieceList* list, Behavior behavior, const Is& is) {
  SplitPieces(list, behavior, false, [&](std::string_view text, std::vector<Match>* matches) {
    for (size_t pos = 0; pos < text.size();) {
      const size_t begin = pos;
      if (is(NextCodePoint(text, &pos))) matches->push_back({begin, pos});
    }
  });
}

// Rewrites the text of every piece: `append(view, piece, out)`.
template <typename Append>
void RewritePieces(PieceList* list, const Append& append) {
  std::string out;
  out.reserve(list->text.size() * 3 / 2);
  for (Piece& piece : list->pieces) {
    const size_t begin = out.size();
    append(list->View(piece), piece, &out);
    piece.begin = begin;
    piece.end = out.size();
  }
  list->text = std::move(out);
}

class Split final : public PreTokenizer {
 public:
  Split(std::shared_ptr<const Pattern> pattern, Behavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}
  void Apply(PieceList* list) const override {
    SplitPieces(list, behavior_, invert_,
                [&](std::string_view text, std::vector<Match>* matches) { pattern_->FindAll(text, matches); });
  }

 private:
  std::shared_ptr<const Pattern> pattern_;
  Behavior behavior_;
  bool invert_;
};

class ByteLevel final : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, std::shared_ptr<const Pattern> words)
      : add_prefix_space_(add_prefix_space), words_(std::move(words)) {}
  void Apply(PieceList* list) const override {
    if (add_prefix_space_) {
      RewritePieces(list, [](std::string_view text, const Piece&, std::string* out) {
        if (text.empty() || text[0] != ' ') out->push_back(' ');
        out->append(text);
      });
    }
    if (words_ != nullptr)
      SplitPieces(list, Behavior::kIsolated, false,
                  [&](std::string_view text, std::vector<Match>* matches) { words_->FindAll(text, matches); });
    RewritePieces(list, [](std::string_view text, const Piece&, std::string* out) { AppendByteLevel(text, out); });
  }

 private:
  bool add_prefix_space_;
  std::shared_ptr<const Pattern> words_;
};

class Metaspace final : public PreTokenizer {
 public:
  explicit Metaspace(MetaspaceOptions options) : options_(std::move(options)) {}
  void Apply(PieceList* list) const override {
    const std::string& mark = options_.replacement;
    RewritePieces(list, [&](std::string_view text, const Piece& piece, std::string* out) {
      const bool prepend = options_.prepend == MetaspaceOptions::Prepend::kAlways ||
                           (options_.prepend == MetaspaceOptions::Prepend::kFirst && piece.at_start);
      if (prepend && text.substr(0, 1) != " " && text.substr(0, mark.size()) != mark) out->append(mark);
      for (const char c : text) c == ' ' ? out->append(mark) : out->append(1, c);
    });
    if (!options_.split) return;
    SplitPieces(list, Behavior::kMergedWithNext, false, [&](std::string_view text, std::vector<Match>* matches) {
      for (size_t pos = 0; (pos = text.find(mark, pos)) != std::string_view::npos; pos += mark.size())
        matches->push_back({pos, pos + mark.size()});
    });
  }

 private:
  MetaspaceOptions options_;
};

class Digits final : public PreTokenizer {
 public:
  explicit Digits(bool individual) : behavior_(individual ? Behavior::kIsolated : Behavior::kContiguous) {}
  void Apply(PieceList* list) const override { SplitAtCharacters(list, behavior_, IsNumeric); }

 private:
  Behavior behavior_;
};

class Punctuation final : public PreTokenizer {
 public:
  explicit Punctuation(Behavior behavior) : behavior_(behavior) {}
  void Apply(PieceList* list) const override { SplitAtCharacters(list, behavior_, IsPunctuation); }

 private:
  Behavior behavior_;
};

class WhitespaceSplit final : public PreTokenizer {
 public:
  void Apply(PieceList* list) const override { SplitAtCharacters(list, Behavior::kRemoved, IsWhiteSpace); }
};

// Runs of word characters and runs of everything else but white space.
class Whitespace final : public PreTokenizer {
 public:
  void Apply(PieceList* list) const override {
    SplitPieces(list, Behavior::kRemoved, true, [](std::string_view text, std::vector<Match>* matches) {
      const auto kind = [](char32_t c) { return IsWordChar(c) ? 1 : (IsWhiteSpace(c) ? 0 : 2); };
      for (size_t pos = 0; pos < text.size();) {
        const size_t begin = pos;
        const int run = kind(NextCodePoint(text, &pos));
        for (size_t next = pos; next < text.size() && kind(NextCodePoint(text, &next)) == run;) pos = next;
        if (run != 0) matches->push_back({begin, pos});
      }
    });
  }
};

class CharDelimiterSplit final : public PreTokenizer {
 public:
  explicit CharDelimiterSplit(char32_t delimiter) : delimiter_(delimiter) {}
  void Apply(PieceList* list) const override {
    SplitAtCharacters(list, Behavior::kRemoved, [this](char32_t c) { return c == delimiter_; });
  }

 private:
  char32_t delimiter_;
};

class Sequence final : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> parts) : parts_(std::move(parts)) {}
  void Apply(PieceList* list) const override {
    for (const auto& part : parts_) part->Apply(list);
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> parts_;
};

Result<Behavior> ReadBehavior(const Json& json, const std::string& where) {
  QUERN_ASSIGN_OR_RETURN(const std::string name, JsonString(json, "behavior", "Isolated", where));
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  return Unimplemented(StrCat(where, ": split behavior \"", name, "\" is not supported"));
}

template <typename T, typename... Args>
std::unique_ptr<PreTokenizer> Make(Args&&... args) {
  return std::make_unique<T>(std::forward<Args>(args)...);
}

}  // namespace

Result<std::unique_ptr<PreTokenizer>> MakePreTokenizer(const Json& json, const std::string& where) {
  if (json.is_null()) return std::unique_ptr<PreTokenizer>();
  QUERN_ASSIGN_OR_RETURN(const std::string type, JsonString(json, "type", "", where));
  if (type == "ByteLevel") {
    QUERN_ASSIGN_OR_RETURN(const bool prefix, JsonBool(json, "add_prefix_space", true, where));
    QUERN_ASSIGN_OR_RETURN(const bool use_regex, JsonBool(json, "use_regex", true, where));
    std::shared_ptr<const Pattern> words;
    if (use_regex) {
      QUERN_ASSIGN_OR_RETURN(words, Pattern::Regex(kGpt2Words, where));
    }
    return Make<ByteLevel>(prefix, std::move(words));
  }
  if (type == "Split") {
    QUERN_ASSIGN_OR_RETURN(auto pattern, Pattern::FromJson(JsonField(json, "pattern"), where));
    QUERN_ASSIGN_OR_RETURN(const Behavior behavior, ReadBehavior(json, where));
    QUERN_ASSIGN_OR_RETURN(const bool invert, JsonBool(json, "invert", false, where));
    return Make<Split>(std::move(pattern), behavior, invert);
  }
  if (type == "Metaspace") {
    QUERN_ASSIGN_OR_RETURN(MetaspaceOptions options, ReadMetaspace(json, where));
    return Make<Metaspace>(std::move(options));
  }
  if (type == "Digits") {
    QUERN_ASSIGN_OR_RETURN(const bool individual, JsonBool(json, "individual_digits", false, where));
    return Make<Digits>(individual);
  }
  if (type == "Punctuation") {
    QUERN_ASSIGN_OR_RETURN(const Behavior behavior, ReadBehavior(json, where));
    return Make<Punctuation>(behavior);
  }
  if (type == "Whitespace") return Make<Whitespace>();
  if (type == "WhitespaceSplit") return Make<WhitespaceSplit>();
  if (type == "CharDelimiterSplit") {
    QUERN_ASSIGN_OR_RETURN(const std::string delimiter, JsonString(json, "delimiter", "", where));
    size_t pos = 0;
    const char32_t c = delimiter.empty() ? 0 : NextCodePoint(delimiter, &pos);
    if (delimiter.empty() || pos != delimiter.size())
      return InvalidArgument(where + ": CharDelimiterSplit needs one character \"delimiter\"");
    return Make<CharDelimiterSplit>(c);
  }
  if (type == "Sequence") {
    const Json& list = JsonField(json, "pretokenizers");
    if (!list.is_array()) return InvalidArgument(where + ": Sequence needs a list \"pretokenizers\"");
    std::vector<std::unique_ptr<PreTokenizer>> parts;
    for (const Json& item : list) {
      if (JsonField(item, "type") == "Sequence")
        return Unimplemented(where + ": a Sequence inside a Sequence is not supported");
      QUERN_ASSIGN_OR_RETURN(auto part, MakePreTokenizer(item, where));
      if (part != nullptr) parts.push_back(std::move(part));
    }
    return Make<Sequence>(std::move(parts));
  }
  return Unimplemented(StrCat(where, ": pre_tokenizer \"", type, "\" is not supported"));
}

}  // namespace quern
