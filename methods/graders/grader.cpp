#include "methods/graders/grader.h"

#include <utility>

#include "base/strings.h"
#include "methods/graders/extract.h"
#include "methods/graders/graders.h"

namespace quern {

namespace {

struct Entry {
  const char* name;
  GraderResult (*make)(GraderOptions& options);
};

constexpr Entry kEntries[] = {
    {"exact", MakeExactGrader},   {"text", MakeTextGrader},    {"number", MakeNumberGrader},
    {"choice", MakeChoiceGrader}, {"yes_no", MakeYesNoGrader}, {"expression", MakeExpressionGrader},
};

constexpr std::string_view kBoxed = "boxed:";

class BoxedGrader : public Grader {
 public:
  explicit BoxedGrader(std::unique_ptr<Grader> inner) : inner_(std::move(inner)) {}
  std::optional<std::string> Extract(std::string_view completion) const override {
    for (const auto find : {LastBox, LastHashLine, AnswerSentence})
      if (const std::optional<std::string_view> part = find(completion)) return inner_->Extract(*part);
    return std::nullopt;
  }
  std::string Normalise(std::string_view extracted) const override { return inner_->Normalise(extracted); }
  bool Matches(std::string_view extracted, std::string_view truth) const override {
    return inner_->Matches(extracted, truth);
  }

 private:
  std::unique_ptr<Grader> inner_;
};

Status Unknown(const std::string& what, const std::string& name, const std::vector<std::string>& known) {
  const std::string nearest = NearestName(name, known);
  return InvalidArgument(StrCat("unknown ", what, ": \"", name, "\"",
                                nearest.empty() ? "" : StrCat("; did you mean \"", nearest, "\"?"),
                                known.empty() ? " (there are none)" : StrCat(" (known: ", StrJoin(known, ", "), ")")));
}

}  // namespace

Result<std::unique_ptr<Grader>> MakeGrader(const std::string& spec) {
  std::vector<std::string> parts = StrSplit(spec, ',');
  const bool boxed = parts[0].starts_with(kBoxed);
  const std::string name = boxed ? parts[0].substr(kBoxed.size()) : parts[0];
  std::map<std::string, std::string> values;
  for (size_t i = 1; i < parts.size(); ++i) {
    const size_t sign = parts[i].find('=');
    if (sign == std::string::npos)
      return InvalidArgument(StrCat("grader ", spec, ": \"", parts[i], "\" is not option=value"));
    values[parts[i].substr(0, sign)] = parts[i].substr(sign + 1);
  }
  for (const Entry& entry : kEntries) {
    if (name != entry.name) continue;
    GraderOptions options(std::move(values));
    QUERN_ASSIGN_OR_RETURN(std::unique_ptr<Grader> grader, entry.make(options));
    for (const auto& [option, value] : options.values())
      if (!options.known().contains(option))
        return Unknown("option of grader " + name, option, {options.known().begin(), options.known().end()});
    if (boxed) grader = std::make_unique<BoxedGrader>(std::move(grader));
    return grader;
  }
  return Unknown("grader", name, GraderNames());
}

std::vector<std::string> GraderNames() {
  std::vector<std::string> names;
  for (const Entry& entry : kEntries) names.emplace_back(entry.name);
  return names;
}

bool Grade(const Grader& grader, std::string_view completion, std::string_view truth) {
  const std::optional<std::string> extracted = grader.Extract(completion);
  return extracted && grader.Matches(*extracted, truth);
}

}  // namespace quern
