#include "base/file.h"
#include "base/strings.h"
#include "model/hf/model_config.h"
#include "model/hf/model_directory.h"

namespace quern {

Result<ModelReport> InspectModelDirectory(const std::string& dir) {
  const std::string path = JoinPath(dir, "config.json");
  QUERN_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
  if (!json.is_object()) return InvalidArgument(path + ": must hold a JSON object");
  QUERN_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(dir));

  ModelReport report;
  const Json& type = JsonField(json, "model_type");
  report.family = type.is_string() ? type.get<std::string>() : "";
  const ModelConfig config = ReadModelConfig(json, &report.unsupported);
  const bool readable = report.unsupported.empty();
  for (std::string& line : report.unsupported) line = "config.json: " + line;
  report.files = checkpoint->files();
  report.tensors = checkpoint->tensors();
  for (const TensorInfo& tensor : report.tensors) {
    report.parameters += tensor.elements();
    report.bytes += tensor.bytes();
    report.parameters_by_dtype[tensor.dtype] += tensor.elements();
  }
  if (readable) {
    report.config = config;
    report.unsupported = checkpoint->Problems(config);
  }
  return report;
}

Status CheckSupported(const std::string& dir) {
  QUERN_ASSIGN_OR_RETURN(const ModelReport report, InspectModelDirectory(dir));
  if (report.unsupported.empty()) return {};
  return Unimplemented(StrCat(dir, ": ", report.unsupported[0]));
}

}  // namespace quern
