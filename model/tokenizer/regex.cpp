#define PCRE2_CODE_UNIT_WIDTH 8
#include "model/tokenizer/regex.h"

#include <pcre2.h>

#include "base/strings.h"
#include "model/tokenizer/unicode.h"

namespace quern {
namespace {

constexpr size_t kMaxPatternBytes = 1 << 16;

// Match data and JIT stack of one thread. The block holds the whole match only, whatever groups the pattern has.
struct ThreadScratch {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, 4 << 20, nullptr);

  ThreadScratch() { pcre2_jit_stack_assign(context, nullptr, stack); }
  ~ThreadScratch() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
};

class LiteralPattern final : public Pattern {
 public:
  explicit LiteralPattern(std::string text) : text_(std::move(text)) {}

  void FindAll(std::string_view text, std::vector<Match>* matches) const override {
    if (text_.empty()) {  // as an empty regular expression: between all characters
      for (size_t pos = 0;;) {
        matches->push_back({pos, pos});
        if (pos >= text.size()) return;
        NextCodePoint(text, &pos);
      }
    }
    for (size_t pos = 0; (pos = text.find(text_, pos)) != std::string_view::npos; pos += text_.size())
      matches->push_back({pos, pos + text_.size()});
  }

 private:
  std::string text_;
};

class RegexPattern final : public Pattern {
 public:
  explicit RegexPattern(pcre2_code* code) : code_(code) {}
  ~RegexPattern() override { pcre2_code_free(code_); }

  void FindAll(std::string_view text, std::vector<Match>* matches) const override {
    size_t from = 0;
    size_t last_end = std::string_view::npos;
    Match match;
    while (from <= text.size() && Find(text, from, &match)) {
      if (match.begin == match.end && match.end == last_end) {  // no empty match right behind another match
        if (from >= text.size()) return;
        NextCodePoint(text, &from);
        continue;
      }
      from = last_end = match.end;
      matches->push_back(match);
    }
  }

 private:
  bool Find(std::string_view text, size_t from, Match* match) const {
    static thread_local const ThreadScratch scratch;
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    int rc = pcre2_match(code_, subject, text.size(), from, PCRE2_NO_UTF_CHECK, scratch.data, scratch.context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
      rc = pcre2_match(code_, subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, scratch.data,
                       scratch.context);
    if (rc < 0) return false;  // no match, or a limit of PCRE2: then the rest is one unmatched part
    const size_t* offsets = pcre2_get_ovector_pointer(scratch.data);
    *match = {offsets[0], offsets[1]};
    return match->begin <= match->end && match->begin >= from;
  }

  pcre2_code* code_;
};

}  // namespace

std::shared_ptr<const Pattern> Pattern::Literal(const std::string& text) {
  return std::make_shared<LiteralPattern>(text);
}

Result<std::shared_ptr<const Pattern>> Pattern::Regex(const std::string& regex, const std::string& where) {
  if (regex.size() > kMaxPatternBytes) return InvalidArgument(where + ": the regular expression is too long");
  auto translated = TranslateRegex(regex);
  if (!translated.ok()) return translated.status().Annotate(StrCat(where, ": regular expression \"", regex, "\""));
  int error = 0;
  size_t offset = 0;
  const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated->data()), translated->size(), options,
                                   &error, &offset, nullptr);
  if (code == nullptr) {
    char message[256] = {};
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof(message));
    return InvalidArgument(StrCat(where, ": regular expression \"", regex, "\": ", message));
  }
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where it fails, matching is slower
  return std::shared_ptr<const Pattern>(std::make_shared<RegexPattern>(code));
}

Result<std::shared_ptr<const Pattern>> Pattern::FromJson(const Json& json, const std::string& where) {
  if (json.is_string()) return Literal(json.get<std::string>());
  const Json& literal = JsonField(json, "String");
  if (literal.is_string()) return Literal(literal.get<std::string>());
  const Json& regex = JsonField(json, "Regex");
  if (regex.is_string()) return Regex(regex.get<std::string>(), where);
  return InvalidArgument(
      StrCat(where, ": \"pattern\" must be {\"String\": ..} or {\"Regex\": ..}, not ", JsonExcerpt(json)));
}

}  // namespace quern
