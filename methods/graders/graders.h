#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>

#include "methods/graders/grader.h"

namespace quern {

// The options of a grader's spec. A maker takes what it knows; what is left is an error (grader.cpp).
class GraderOptions {
 public:
  explicit GraderOptions(std::map<std::string, std::string> values) : values_(std::move(values)) {}
  std::string Take(const std::string& name, const std::string& fallback) {
    known_.insert(name);
    const auto it = values_.find(name);
    return it == values_.end() ? fallback : it->second;
  }
  const std::map<std::string, std::string>& values() const { return values_; }
  const std::set<std::string>& known() const { return known_; }

 private:
  std::map<std::string, std::string> values_;
  std::set<std::string> known_;
};

// One maker per grader, named in grader.cpp.
using GraderResult = Result<std::unique_ptr<Grader>>;
GraderResult MakeExactGrader(GraderOptions& options);
GraderResult MakeTextGrader(GraderOptions& options);
GraderResult MakeNumberGrader(GraderOptions& options);
GraderResult MakeChoiceGrader(GraderOptions& options);
GraderResult MakeYesNoGrader(GraderOptions& options);
GraderResult MakeExpressionGrader(GraderOptions& options);

}  // namespace quern
