#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/status.h"

namespace quern {

// What the stages of a reasoning chain say to the model (ReGenesis, arXiv 2410.02108; the wording is ours). {name} in a
// text is a placeholder: question, prompt, guideline, adapted, structure, path, answer, hint, nl. Other braces are
// text.
struct ChainTemplates {
  std::string adapt;   // guideline -> advice for this question
  std::string plan;    // advice -> list of steps
  std::string solve;   // steps -> path and answer
  std::string direct;  // in place of solve where a chain has neither a guideline nor a plan
  std::string check;   // path -> yes or no
  std::string hint;    // {hint} of a retry that shows the answer; nothing in other chains
  std::string opener;  // before a path of numbered steps in the training text
};

const ChainTemplates& DefaultTemplates();
const std::vector<std::string>& DefaultGuidelines();

// Sections of `text` over the defaults (methods/regenesis/templates.txt shows the form). `source` names it in errors.
Result<ChainTemplates> ParseTemplates(const std::string& text, const std::string& source);
// One a line; empty lines and lines that begin with # do not count.
Result<std::vector<std::string>> ParseGuidelines(const std::string& text, const std::string& source);

using Placeholders = std::map<std::string, std::string>;
// A placeholder without a value is left out. Values are not expanded again.
std::string ExpandTemplate(const std::string& text, const Placeholders& values);
bool HasPlaceholder(const std::string& text, const std::string& name);

}  // namespace quern
