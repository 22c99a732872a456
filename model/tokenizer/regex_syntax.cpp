#include <unicode/uchar.h>

#include <cctype>
#include <map>

#include "base/strings.h"
#include "model/tokenizer/newer_characters.h"
#include "model/tokenizer/regex.h"

namespace quern {
namespace {

// White_Space. PCRE2's own \s has U+180E, which lost the property in Unicode 6.3.
constexpr char kSpace[] =
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";
constexpr char kNotSpace[] =
    "\\x{0}-\\x{8}\\x{E}-\\x{1F}\\x{21}-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}\\x{200B}-\\x{2027}"
    "\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{10FFFF}";

const std::map<std::string, std::string, std::less<>> kLongNames = {
    {"Letter", "L"}, {"Mark", "M"},      {"Number", "N"}, {"Punctuation", "P"},
    {"Symbol", "S"}, {"Separator", "Z"}, {"Other", "C"}};

// Characters of a general category that are newer than PCRE2's Unicode tables, as ranges for a class.
std::string NewerCharacters(const std::string& category) {
  std::string ranges;
  for (const CategoryRange& range : kNewerCharacters)
    if (std::string_view(range.category).substr(0, category.size()) == category && !category.empty())
      ranges += StrFormat("\\x{%X}-\\x{%X}", range.begin, range.end);
  return ranges;
}

class Translator {
 public:
  explicit Translator(std::string_view regex) : in_(regex) {}

  Result<std::string> Run() {
    while (pos_ < in_.size()) {
      const char c = in_[pos_];
      if (c == '\\') {
        QUERN_RETURN_IF_ERROR(Escape());
      } else if (in_class_) {
        QUERN_RETURN_IF_ERROR(InClass(c));
      } else {
        if (c == '[')
          OpenClass();
        else
          Copy(1);
      }
    }
    return out_;
  }

 private:
  void Copy(size_t count) {
    out_.append(in_.substr(pos_, count));
    pos_ += count;
  }

  void OpenClass() {
    in_class_ = true;
    Copy(1);
    if (pos_ < in_.size() && in_[pos_] == '^') Copy(1);
    if (pos_ < in_.size() && in_[pos_] == ']') Copy(1);
  }

  Status InClass(char c) {
    if (c == ']') {
      in_class_ = false;
    } else if (c == '[') {
      return Unimplemented(in_.substr(pos_, 2) == "[:" ? "POSIX classes ([:alpha:]) are not supported"
                                                       : "classes inside classes are not supported");
    } else if (c == '&' && in_.substr(pos_, 2) == "&&") {
      return Unimplemented("intersections of character classes (&&) are not supported");
    }
    Copy(1);
    return {};
  }

  // `members` as (part of) a class.
  void Emit(bool negated, const std::string& members) {
    if (in_class_) {
      out_ += members;
    } else {
      out_ += (negated ? "[^" : "[") + members + "]";
    }
  }

  Status Escape() {
    if (pos_ + 1 >= in_.size()) return InvalidArgument("ends with a backslash");
    const char c = in_[pos_ + 1];
    const bool negated = std::isupper(static_cast<unsigned char>(c)) != 0;
    switch (c) {
      case 's':
      case 'S': Emit(negated, in_class_ && negated ? kNotSpace : kSpace); break;
      case 'd':
      case 'D':
        if (in_class_ && negated) return Copy(2), Status();
        Emit(negated, "\\p{Nd}" + NewerCharacters("Nd"));
        break;
      case 'w':
      case 'W': {
        if (in_class_ && negated) return Unimplemented("\\W inside a character class is not supported");
        // Oniguruma's word characters: Alphabetic, marks, digits, connectors and, by an old slip, Latin-1 fractions.
        std::string members = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}";
        for (const char* category : {"L", "M", "Nd", "Pc"}) members += NewerCharacters(category);
        Emit(negated, members);
        break;
      }
      case 'h':
      case 'H':
        if (in_class_ && negated) return Unimplemented("\\H inside a character class is not supported");
        Emit(negated, "0-9a-fA-F");
        break;
      case 'p':
      case 'P': return Property(negated);
      case 'u': {
        const std::string_view digits = in_.substr(pos_ + 2, 4);
        if (digits.size() < 4) return InvalidArgument("\\u needs four hexadecimal digits");
        out_ += StrCat("\\x{", digits, "}");
        pos_ += 6;
        return {};
      }
      default: Copy(2); return {};
    }
    pos_ += 2;
    return {};
  }

  Status Property(bool negated) {
    size_t name_begin = pos_ + 2, name_end = name_begin + 1, next = name_end;
    if (name_begin < in_.size() && in_[name_begin] == '{') {
      ++name_begin;
      name_end = in_.find('}', name_begin);
      if (name_end == std::string_view::npos) return InvalidArgument("unterminated \\p{");
      next = name_end + 1;
    }
    if (next > in_.size()) return InvalidArgument("ends inside \\p");
    std::string name(in_.substr(name_begin, name_end - name_begin));
    if (!name.empty() && name[0] == '^') {
      negated = !negated;
      name.erase(0, 1);
    }
    if (const auto it = kLongNames.find(name); it != kLongNames.end()) name = it->second;
    // PCRE2's bare script names include characters that several scripts share.
    if (u_getPropertyValueEnum(UCHAR_SCRIPT, name.c_str()) != UCHAR_INVALID_CODE) name = "sc:" + name;
    pos_ = next;
    if (in_class_ && negated) {
      out_ += "\\P{" + name + "}";
    } else {
      Emit(negated, "\\p{" + name + "}" + NewerCharacters(name));
    }
    return {};
  }

  std::string_view in_;
  size_t pos_ = 0;
  bool in_class_ = false;
  std::string out_;
};

}  // namespace

Result<std::string> TranslateRegex(std::string_view regex) { return Translator(regex).Run(); }

}  // namespace quern
