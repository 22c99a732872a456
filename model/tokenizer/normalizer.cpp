#include "model/tokenizer/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uniset.h>

#include <algorithm>

#include "base/strings.h"
#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/unicode.h"

namespace quern {
namespace {

class Sequence final : public TextNormalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<TextNormalizer>> parts) : parts_(std::move(parts)) {}
  void Apply(std::string* text, bool* at_start) const override {
    for (const auto& part : parts_) part->Apply(text, at_start);
  }

 private:
  std::vector<std::unique_ptr<TextNormalizer>> parts_;
};

// The reference normalises by the tables of Unicode 9.0; characters that are newer stay as they are, as if they had no
// properties.
const icu::UnicodeSet* NormalizedCharacters() {
  static const icu::UnicodeSet* const set = [] {
    UErrorCode error = U_ZERO_ERROR;
    auto* made = new icu::UnicodeSet(u"[:Age=9.0:]", error);
    made->freeze();
    return made;
  }();
  return set;
}

class UnicodeForm final : public TextNormalizer {
 public:
  UnicodeForm(const icu::Normalizer2* form, bool composes_canonically)
      : form_(*form, *NormalizedCharacters()), skip_low_(composes_canonically) {}
  void Apply(std::string* text, bool*) const override {
    // Everything below U+0300 (lead bytes up to 0xCB) is in NFC.
    const auto low = [](char c) { return static_cast<unsigned char>(c) < 0xcc; };
    if (skip_low_ && std::all_of(text->begin(), text->end(), low)) return;
    UErrorCode error = U_ZERO_ERROR;
    const icu::StringPiece piece(text->data(), static_cast<int32_t>(text->size()));
    if (form_.isNormalizedUTF8(piece, error) && U_SUCCESS(error)) return;
    error = U_ZERO_ERROR;
    std::string out;
    icu::StringByteSink<std::string> sink(&out, static_cast<int32_t>(text->size()));
    form_.normalizeUTF8(0, piece, sink, nullptr, error);
    if (U_SUCCESS(error)) *text = std::move(out);
  }

 private:
  icu::FilteredNormalizer2 form_;
  bool skip_low_;
};

class Lowercase final : public TextNormalizer {
 public:
  void Apply(std::string* text, bool*) const override {
    std::string out;
    for (size_t pos = 0; pos < text->size();) AppendLowercase(NextCodePoint(*text, &pos), &out);
    *text = std::move(out);
  }
};

class StripSpaces final : public TextNormalizer {
 public:
  StripSpaces(bool left, bool right) : left_(left), right_(right) {}
  void Apply(std::string* text, bool* at_start) const override {
    size_t begin = 0, end = text->size();
    while (left_ && begin < end) {
      size_t next = begin;
      if (!IsWhiteSpace(NextCodePoint(*text, &next))) break;
      begin = next;
    }
    while (right_ && end > begin) {
      const size_t previous = PreviousBoundary(*text, end);
      size_t pos = previous;
      if (!IsWhiteSpace(NextCodePoint(*text, &pos))) break;
      end = previous;
    }
    if (begin > 0) *at_start = false;
    *text = text->substr(begin, end - begin);
  }

 private:
  bool left_, right_;
};

class StripAccents final : public TextNormalizer {
 public:
  void Apply(std::string* text, bool* at_start) const override {
    std::string out;
    for (size_t pos = 0; pos < text->size();) {
      const size_t begin = pos;
      const char32_t c = NextCodePoint(*text, &pos);
      if (!IsMark(c) || !NormalizedCharacters()->contains(static_cast<UChar32>(c))) {
        out.append(*text, begin, pos - begin);
      } else if (begin == 0) {
        *at_start = false;
      }
    }
    *text = std::move(out);
  }
};

class Prepend final : public TextNormalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  void Apply(std::string* text, bool*) const override {
    if (!text->empty()) text->insert(0, prefix_);
  }

 private:
  std::string prefix_;
};

class Replace final : public TextNormalizer {
 public:
  Replace(std::shared_ptr<const Pattern> pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void Apply(std::string* text, bool* at_start) const override {
    std::vector<Match> matches;
    pattern_->FindAll(*text, &matches);
    if (matches.empty()) return;
    std::string out;
    size_t from = 0;
    for (const Match& match : matches) {
      out.append(*text, from, match.begin - from);
      out.append(content_);
      from = match.end;
    }
    out.append(*text, from);
    if (content_.empty() && matches[0].begin == 0 && matches[0].end > 0) *at_start = false;
    *text = std::move(out);
  }

 private:
  std::shared_ptr<const Pattern> pattern_;
  std::string content_;
};

class ByteLevel final : public TextNormalizer {
 public:
  void Apply(std::string* text, bool*) const override {
    std::string out;
    AppendByteLevel(*text, &out);
    *text = std::move(out);
  }
};

const icu::Normalizer2* Form(const std::string& type) {
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* form = nullptr;
  if (type == "NFC") form = icu::Normalizer2::getNFCInstance(error);
  if (type == "NFD") form = icu::Normalizer2::getNFDInstance(error);
  if (type == "NFKC") form = icu::Normalizer2::getNFKCInstance(error);
  if (type == "NFKD") form = icu::Normalizer2::getNFKDInstance(error);
  return U_SUCCESS(error) ? form : nullptr;
}

template <typename T, typename... Args>
std::unique_ptr<TextNormalizer> Make(Args&&... args) {
  return std::make_unique<T>(std::forward<Args>(args)...);
}

}  // namespace

Result<std::unique_ptr<TextNormalizer>> MakeNormalizer(const Json& json, const std::string& where) {
  if (json.is_null()) return std::unique_ptr<TextNormalizer>();
  QUERN_ASSIGN_OR_RETURN(const std::string type, JsonString(json, "type", "", where));
  if (const icu::Normalizer2* form = Form(type)) return Make<UnicodeForm>(form, type == "NFC");
  if (type == "Lowercase") return Make<Lowercase>();
  if (type == "StripAccents") return Make<StripAccents>();
  if (type == "ByteLevel") return Make<ByteLevel>();
  if (type == "Strip") {
    QUERN_ASSIGN_OR_RETURN(const bool left, JsonBool(json, "strip_left", true, where));
    QUERN_ASSIGN_OR_RETURN(const bool right, JsonBool(json, "strip_right", true, where));
    return Make<StripSpaces>(left, right);
  }
  if (type == "Prepend") {
    QUERN_ASSIGN_OR_RETURN(const std::string prefix, JsonString(json, "prepend", "", where));
    return Make<Prepend>(prefix);
  }
  if (type == "Replace") {
    QUERN_ASSIGN_OR_RETURN(auto pattern, Pattern::FromJson(JsonField(json, "pattern"), where));
    QUERN_ASSIGN_OR_RETURN(const std::string content, JsonString(json, "content", "", where));
    return Make<Replace>(std::move(pattern), content);
  }
  if (type == "Sequence") {
    const Json& list = JsonField(json, "normalizers");
    if (!list.is_array()) return InvalidArgument(where + ": Sequence needs a list \"normalizers\"");
    std::vector<std::unique_ptr<TextNormalizer>> parts;
    for (const Json& item : list) {
      if (JsonField(item, "type") == "Sequence")
        return Unimplemented(where + ": a Sequence inside a Sequence is not supported");
      QUERN_ASSIGN_OR_RETURN(auto part, MakeNormalizer(item, where));
      if (part != nullptr) parts.push_back(std::move(part));
    }
    return Make<Sequence>(std::move(parts));
  }
  return Unimplemented(StrCat(where, ": normalizer \"", type, "\" is not supported"));
}

}  // namespace quern
