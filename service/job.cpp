#include "service/job.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "base/file.h"
#include "base/strings.h"
#include "service/job_check.h"
#include "service/job_fields.h"

namespace quern {

namespace {

using OrderedJson = nlohmann::ordered_json;

std::string Child(const std::string& path, const std::string& key) { return path.empty() ? key : path + "." + key; }

// Section names that people know under another name.
std::string Canonical(const std::string& key) { return key == "q_sft" ? "qsft" : key; }

// Where values came from, and the first error.
struct Origins {
  std::string file;
  std::map<std::string, std::string> overrides;  // key path -> the override as typed
  std::map<std::string, int> lines;              // key path -> line in the file
  Status error;

  std::string Where(const std::string& path) const {
    for (std::string at = path;; at = at.substr(0, at.rfind('.'))) {
      if (auto it = overrides.find(at); it != overrides.end()) return "'" + it->second + "'";
      if (auto it = lines.find(at); it != lines.end()) return StrCat(file, ":", it->second);
      if (at.rfind('.') == std::string::npos) return file;
    }
  }
  void Fail(const std::string& path, const std::string& what) {
    if (error.ok()) error = InvalidArgument(Where(path) + ": " + what);
  }
};

const char* KindOf(const YAML::Node& node) {
  if (node.IsMap()) return "a section";
  if (node.IsSequence()) return "a list";
  return "a single value";
}

// Reads one section. Keys that no field asked for are errors.
class SectionReader {
 public:
  SectionReader(const YAML::Node& node, std::string path, Origins& origins)
      : node_(node), path_(std::move(path)), origins_(origins) {
    if (!node_.IsMap()) return;
    for (const auto& entry : node_) {
      const std::string key = Canonical(entry.first.Scalar());
      const std::string child = Child(path_, key);
      if (entry.first.Mark().line >= 0 && !origins_.overrides.contains(child))
        origins_.lines.emplace(child, entry.first.Mark().line + 1);
      if (!values_.emplace(key, entry.second).second) origins_.Fail(child, "key '" + child + "' is given twice");
    }
  }

  void Field(const char* key, std::string& value) {
    Scalar(key, value, "text", [](const YAML::Node& n, std::string& v) {
      v = n.Scalar();
      return true;
    });
  }
  void Field(const char* key, bool& value) {
    Scalar(key, value, "true or false", [](const YAML::Node& n, bool& v) { return YAML::convert<bool>::decode(n, v); });
  }
  void Field(const char* key, int64_t& value) {
    Scalar(key, value, "a whole number",
           [](const YAML::Node& n, int64_t& v) { return YAML::convert<int64_t>::decode(n, v); });
  }
  void Field(const char* key, uint64_t& value) {
    Scalar(key, value, "a whole number, 0 or more", [](const YAML::Node& n, uint64_t& v) {
      return n.Scalar().find('-') == std::string::npos && YAML::convert<uint64_t>::decode(n, v);
    });
  }
  void Field(const char* key, double& value) {
    Scalar(key, value, "a number",
           [](const YAML::Node& n, double& v) { return YAML::convert<double>::decode(n, v) && std::isfinite(v); });
  }
  void Field(const char* key, std::vector<std::string>& values) {
    const YAML::Node* node = Take(key);
    if (node == nullptr) return;
    values.clear();
    if (node->IsNull()) return;
    if (!node->IsSequence()) return origins_.Fail(Child(path_, key), Mismatch(key, "a list", *node));
    for (const YAML::Node& item : *node) {
      if (!item.IsScalar()) return origins_.Fail(Child(path_, key), Mismatch(key, "a list of texts", item));
      values.push_back(item.Scalar());
    }
  }
  void Field(const char* key, std::vector<int64_t>& values) {
    const YAML::Node* node = Take(key);
    if (node == nullptr) return;
    values.clear();
    if (node->IsNull()) return;
    if (!node->IsSequence()) return origins_.Fail(Child(path_, key), Mismatch(key, "a list", *node));
    for (const YAML::Node& item : *node) {
      if (!item.IsScalar() || !YAML::convert<int64_t>::decode(item, values.emplace_back()))
        return origins_.Fail(Child(path_, key), Mismatch(key, "a list of whole numbers", item));
    }
  }
  template <class Section>
  requires std::is_class_v<Section>
  void Field(const char* key, Section& section) {
    const YAML::Node* node = Take(key);
    if (node == nullptr || node->IsNull()) return;
    if (!node->IsMap()) return origins_.Fail(Child(path_, key), Mismatch(key, "a section", *node));
    SectionReader reader(*node, Child(path_, key), origins_);
    Fields(reader, section);
    reader.Finish();
  }
  template <class Section>
  void List(const char* key, std::vector<Section>& sections) {
    const YAML::Node* node = Take(key);
    if (node == nullptr) return;
    sections.clear();
    if (node->IsNull()) return;
    if (!node->IsSequence()) return origins_.Fail(Child(path_, key), Mismatch(key, "a list", *node));
    for (size_t i = 0; i < node->size(); ++i) {
      const YAML::Node item = (*node)[i];
      const std::string path = StrCat(Child(path_, key), ".", i);
      if (item.Mark().line >= 0) origins_.lines.emplace(path, item.Mark().line + 1);
      if (!item.IsMap()) return origins_.Fail(path, Mismatch(StrCat(key, ".", i), "a section", item));
      SectionReader reader(item, path, origins_);
      Fields(reader, sections.emplace_back());
      reader.Finish();
    }
  }
  void Rest(OptionMap& options) {
    open_ = true;
    for (const auto& [key, node] : values_) {
      if (known_.contains(key)) continue;
      if (!node.IsScalar()) return origins_.Fail(Child(path_, key), Mismatch(key, "a single value", node));
      options[key] = node.Scalar();
    }
  }

  void Finish() {
    if (open_) return;
    for (const auto& [key, node] : values_) {
      if (known_.contains(key)) continue;
      const std::vector<std::string> names(known_.begin(), known_.end());
      const std::string nearest = NearestName(key, names);
      origins_.Fail(Child(path_, key), "unknown key '" + Child(path_, key) + "'; " +
                                           (nearest.empty() ? "known here: " + StrJoin(names, ", ")
                                                            : "did you mean '" + Child(path_, nearest) + "'?"));
    }
  }

 private:
  const YAML::Node* Take(const std::string& key) {
    known_.insert(key);
    auto it = values_.find(key);
    return it == values_.end() ? nullptr : &it->second;
  }
  std::string Mismatch(const std::string& key, const std::string& wanted, const YAML::Node& got) const {
    const std::string shown = got.IsScalar() ? "'" + got.Scalar() + "'" : std::string(KindOf(got));
    return "'" + Child(path_, key) + "' must be " + wanted + ", not " + shown;
  }
  template <class T, class Decode>
  void Scalar(const char* key, T& value, const char* wanted, Decode decode) {
    const YAML::Node* node = Take(key);
    if (node == nullptr) return;
    T decoded{};
    if (!node->IsScalar() || !decode(*node, decoded)) {
      if (node->IsNull()) return origins_.Fail(Child(path_, key), "'" + Child(path_, key) + "' has no value");
      return origins_.Fail(Child(path_, key), Mismatch(key, wanted, *node));
    }
    value = std::move(decoded);
  }

  const YAML::Node node_;
  std::string path_;
  Origins& origins_;
  std::map<std::string, YAML::Node> values_;
  std::set<std::string> known_;
  bool open_ = false;
};

class SectionWriter {
 public:
  template <class T>
  void Field(const char* key, T& value) {
    if constexpr (std::is_class_v<T> && !std::is_same_v<T, std::string> &&
                  !std::is_same_v<T, std::vector<std::string>> && !std::is_same_v<T, std::vector<int64_t>>) {
      SectionWriter writer;
      Fields(writer, value);
      json[key] = std::move(writer.json);
    } else {
      json[key] = value;
    }
  }
  template <class Section>
  void List(const char* key, std::vector<Section>& sections) {
    json[key] = OrderedJson::array();
    for (Section& section : sections) {
      SectionWriter writer;
      Fields(writer, section);
      json[key].push_back(std::move(writer.json));
    }
  }
  void Rest(OptionMap& options) {
    for (const auto& [key, value] : options) json[key] = value;
  }

  OrderedJson json = OrderedJson::object();
};

Status ApplyOverride(YAML::Node root, const std::string& text, Origins& origins) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0)
    return InvalidArgument("'" + text + "': an override is written key.path=value");
  std::vector<std::string> keys = StrSplit(std::string_view(text).substr(0, equals), '.');
  const std::string value_text = text.substr(equals + 1);
  YAML::Node value;
  try {
    value = YAML::Load(value_text);
  } catch (const YAML::Exception& error) {
    return InvalidArgument("'" + text + "': " + error.msg);
  }
  if (value.IsMap() && !value_text.starts_with("{")) value = YAML::Node(value_text);
  if (value_text.empty()) value = YAML::Node(std::string());
  std::string path;
  YAML::Node node;
  node.reset(root);
  for (size_t i = 0; i < keys.size(); ++i) {
    keys[i] = Canonical(keys[i]);
    path = Child(path, keys[i]);
    const bool last = i + 1 == keys.size();
    if (node.IsSequence()) {
      size_t index = 0;
      for (const char c : keys[i]) index = c >= '0' && c <= '9' && index < 100000 ? index * 10 + (c - '0') : 1000000;
      if (keys[i].empty() || index >= node.size())
        return InvalidArgument(StrCat("'", text, "': the list has ", node.size(), " entries, counted from 0"));
      if (last) node[index] = value;
      YAML::Node next = node[index];
      node.reset(next);
      continue;
    }
    if (keys[i].empty() || !(node.IsMap() || node.IsNull()))
      return InvalidArgument("'" + text + "': '" + path + "' is not a key of the job");
    if (last) node[keys[i]] = value;
    YAML::Node next = node[keys[i]];
    if (!last && !next.IsDefined()) next = YAML::Node(YAML::NodeType::Map);
    if (!last && !next.IsMap() && !next.IsSequence()) {
      node[keys[i]] = YAML::Node(YAML::NodeType::Map);
      next.reset(node[keys[i]]);
    }
    node.reset(next);
  }
  origins.overrides[path] = text;
  return {};
}

void RenameAliases(YAML::Node section) {
  if (!section.IsMap() || !section["q_sft"].IsDefined() || section["qsft"].IsDefined()) return;
  section["qsft"] = section["q_sft"];
  section.remove("q_sft");
}

// Paths given on the command line are relative to where the user is, those in the file to the file.
void AnchorPaths(Job& job, const Origins& origins) {
  std::error_code ignored;
  const auto anchor = [&](const std::string& key, std::string& value) {
    const std::filesystem::path path(value);
    if (value.empty() || path.is_absolute()) return;
    if (origins.overrides.contains(key)) {
      value = std::filesystem::absolute(path, ignored).lexically_normal();
    } else {
      value = (std::filesystem::path(job.base_dir) / path).lexically_normal();
    }
  };
  anchor("model_name_or_path", job.model_name_or_path);
  if (job.model_tokenizer != "environment") anchor("model.tokenizer", job.model_tokenizer);
  if (job.regenesis.guidelines != "default" && job.regenesis.guidelines != "none")
    anchor("regenesis.guidelines", job.regenesis.guidelines);
  if (job.regenesis.templates != "default") anchor("regenesis.templates", job.regenesis.templates);
  anchor("network.http_token_file", job.network.http_token_file);
  const auto anchor_all = [&](const std::string& key, std::vector<std::string>& files) {
    const bool whole = origins.overrides.contains(key);
    for (size_t i = 0; i < files.size(); ++i) anchor(whole ? key : StrCat(key, ".", i), files[i]);
  };
  anchor_all("data.import", job.import_files);
  anchor_all("data.heldout_import", job.heldout_files);
  for (auto& [key, value] : job.environment_options) {
    // Options say themselves what they are: what looks like a file and is one.
    if (!origins.overrides.contains("environment." + key) || value.find_first_of("./") == std::string::npos) continue;
    if (std::filesystem::is_regular_file(value, ignored))
      value = std::filesystem::absolute(value, ignored).lexically_normal();
  }
}

}  // namespace

std::string RuleName(const MixtureSection& rule) {
  return rule.policy == "fixed" ? StrCat("fixed_", rule.share) : rule.policy;
}

std::string CollapseRow(const MixtureSection& rule, int64_t real_records) {
  return StrCat(RuleName(rule), "@", real_records);
}

namespace {

Result<Job> ReadJob(const std::string& text, const std::string& name, const std::string& base_dir,
                    const std::vector<std::string>& overrides) {
  Origins origins{.file = name, .overrides = {}, .lines = {}, .error = {}};
  Job job;
  job.name = std::filesystem::path(name).stem();
  job.base_dir = base_dir;
  try {
    YAML::Node root = YAML::Load(text);
    if (root.IsNull()) root = YAML::Node(YAML::NodeType::Map);
    if (!root.IsMap()) return InvalidArgument(name + ": a job is written as key: value lines");
    RenameAliases(root);
    if (root["online"].IsDefined()) RenameAliases(root["online"]);
    for (const std::string& override_text : overrides) {
      QUERN_RETURN_IF_ERROR(ApplyOverride(root, override_text, origins));
    }
    SectionReader reader(root, "", origins);
    Fields(reader, job);
    reader.Finish();
  } catch (const YAML::Exception& error) {
    return InvalidArgument(StrCat(name, ":", error.mark.line + 1, ": ", error.msg));
  }
  QUERN_RETURN_IF_ERROR(origins.error);
  std::string key;
  const std::string problem = FindProblem(job, key);
  if (!problem.empty()) return InvalidArgument(origins.Where(key) + ": '" + key + "' " + problem);
  AnchorPaths(job, origins);
  return job;
}

}  // namespace

Result<Job> ParseJob(const std::string& text, const std::string& name, const std::string& base_dir,
                     const std::vector<std::string>& overrides) {
  Result<Job> job = ReadJob(text, name, base_dir, overrides);
  if (job.ok()) return job;
  // Names and what yaml-cpp found are quoted as they stand, a line's end too.
  std::string message = job.status().message();
  std::replace_if(
      message.begin(), message.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  return Status(job.status().code(), message);
}

Result<Job> LoadJob(const std::string& path, const std::vector<std::string>& overrides) {
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  if (error) return FromErrno(error.value(), path);
  return ParseJob(text, path, absolute.lexically_normal().parent_path(), overrides);
}

std::string JobToJson(const Job& job) {
  Job copy = job;
  SectionWriter writer;
  Fields(writer, copy);
  return writer.json.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

}  // namespace quern
