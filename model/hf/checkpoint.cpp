#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include "base/strings.h"
#include "model/hf/json_reader.h"
#include "model/hf/model_directory.h"
#include "model/hf/shapes.h"

namespace quern {
namespace {

constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";

bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos && name.find('\\') == std::string::npos;
}

bool IsFloat(DType dtype) { return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBf16; }

bool EndsWith(std::string_view text, std::string_view suffix) {
  return text.size() >= suffix.size() && text.substr(text.size() - suffix.size()) == suffix;
}

// tensor name -> file name, checked.
Result<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  QUERN_ASSIGN_OR_RETURN(const Json index, ReadJsonFile(path));
  const Json& map = JsonField(index, "weight_map");
  if (!map.is_object()) return InvalidArgument(path + ": \"weight_map\" is missing or not an object");
  std::map<std::string, std::string> files;
  for (const auto& [name, file] : map.items()) {
    if (!file.is_string() || !IsPlainFileName(file.get<std::string>()))
      return InvalidArgument(
          StrCat(path, ": tensor ", name, ": ", JsonExcerpt(file), " is not a plain file name inside the directory"));
    files[name] = file.get<std::string>();
  }
  if (files.empty()) return InvalidArgument(path + ": \"weight_map\" is empty");
  return files;
}

}  // namespace

struct Checkpoint::File {
  explicit File(MappedFile mapped) : map(std::move(mapped)) {}
  MappedFile map;
};

Checkpoint::~Checkpoint() = default;

Result<std::shared_ptr<const Checkpoint>> Checkpoint::Open(const std::string& dir) {
  std::shared_ptr<Checkpoint> checkpoint(new Checkpoint);
  checkpoint->dir_ = dir;
  const std::string index_path = JoinPath(dir, kIndex);
  if (PathExists(JoinPath(dir, kSingle))) {
    QUERN_RETURN_IF_ERROR(checkpoint->AddFile(dir, kSingle));
    QUERN_RETURN_IF_ERROR(checkpoint->Finish());
  } else if (PathExists(index_path)) {
    QUERN_ASSIGN_OR_RETURN(const auto weight_map, ReadIndex(index_path));
    std::vector<std::string> names;
    for (const auto& [tensor, file] : weight_map) names.push_back(file);
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    for (const std::string& name : names) QUERN_RETURN_IF_ERROR(checkpoint->AddFile(dir, name));
    QUERN_RETURN_IF_ERROR(checkpoint->Finish());
    for (const auto& [tensor, file] : weight_map)
      if (checkpoint->Info(tensor) == nullptr)
        return OneLine(InvalidArgument(StrCat(index_path, ": tensor ", tensor, " is not in ", file)));
  } else if (PathExists(JoinPath(dir, "pytorch_model.bin")) ||
             PathExists(JoinPath(dir, "pytorch_model.bin.index.json"))) {
    return Unimplemented(dir +
                         ": has only pickled weights (pytorch_model.bin), which can run code; convert to safetensors");
  } else {
    return NotFound(StrCat(dir, ": no ", kSingle, " and no ", kIndex));
  }
  if (PathExists(JoinPath(dir, kFp8StateFile))) {
    QUERN_RETURN_IF_ERROR(checkpoint->AddFile(dir, kFp8StateFile));
    QUERN_RETURN_IF_ERROR(checkpoint->Finish());
  }
  return std::shared_ptr<const Checkpoint>(std::move(checkpoint));
}

Status Checkpoint::AddFile(const std::string& dir, const std::string& name) {
  const std::string path = JoinPath(dir, name);
  QUERN_ASSIGN_OR_RETURN(MappedFile map, MappedFile::Open(path));
  QUERN_ASSIGN_OR_RETURN(const SafetensorsHeader header, ParseSafetensors(map.bytes(), path));
  const uint8_t* buffer = map.bytes().data() + header.buffer_offset;
  for (const TensorInfo& tensor : header.tensors) {
    tensors_.push_back(tensor);
    data_.push_back(buffer + tensor.begin);
  }
  files_.push_back(std::make_unique<File>(std::move(map)));
  file_names_.push_back(name);
  return {};
}

// Sorts by name and copies what is not aligned for its element type.
Status Checkpoint::Finish() {
  std::vector<size_t> order(tensors_.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return tensors_[a].name < tensors_[b].name; });
  std::vector<TensorInfo> tensors;
  std::vector<const uint8_t*> data;
  for (const size_t i : order) {
    if (!tensors.empty() && tensors.back().name == tensors_[i].name)
      return OneLine(InvalidArgument(StrCat(dir_, ": tensor ", tensors_[i].name, " is in more than one file")));
    const uint8_t* bytes = data_[i];
    const auto dtype = SafetensorsDType(tensors_[i].dtype);
    if (dtype && tensors_[i].bytes() > 0 && reinterpret_cast<uintptr_t>(bytes) % DTypeSize(*dtype) != 0) {
      realigned_.emplace_back(DType::kU8, 1, tensors_[i].bytes());
      std::memcpy(realigned_.back().Row<uint8_t>(0), bytes, static_cast<size_t>(tensors_[i].bytes()));
      bytes = realigned_.back().Row<uint8_t>(0);
    }
    tensors.push_back(std::move(tensors_[i]));
    data.push_back(bytes);
  }
  tensors_ = std::move(tensors);
  data_ = std::move(data);
  return {};
}

const TensorInfo* Checkpoint::Info(std::string_view name) const {
  const auto it = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                   [](const TensorInfo& info, std::string_view key) { return info.name < key; });
  return it != tensors_.end() && it->name == name ? &*it : nullptr;
}

Result<TensorView> Checkpoint::Find(std::string_view name) const {
  const TensorInfo* info = Info(name);
  if (info == nullptr) return NotFound(StrCat(dir_, ": tensor ", name, " is missing"));
  const auto dtype = SafetensorsDType(info->dtype);
  if (!dtype || !IsFloat(*dtype))
    return Unimplemented(
        StrCat(dir_, ": tensor ", name, " is ", info->dtype, "; F32, F16 and BF16 weights are supported"));
  const auto* data = data_[static_cast<size_t>(info - tensors_.data())];
  const int64_t elements = info->elements();
  const int64_t rows = info->shape.size() < 2 ? 1 : info->shape[0];
  const int64_t cols = rows == 0 ? 0 : elements / rows;
  return TensorView{const_cast<uint8_t*>(data), *dtype, rows, cols, cols};
}

TensorSource Checkpoint::Source() const {
  // Whoever reads all tensors is done with what it asked for before when it asks for the next, so that little is in
  // memory beside what is made of them; where it is not, pages come back from the file.
  return [this](const std::string& name) {
    LetGo();
    return Find(name);
  };
}

void Checkpoint::LetGo() const {
  for (const std::unique_ptr<File>& file : files_) {
    const std::span<const uint8_t> map = file->map.bytes();
    if (!map.empty()) (void)madvise(const_cast<uint8_t*>(map.data()), map.size(), MADV_DONTNEED);
  }
}

std::vector<std::string> Checkpoint::Problems(const ModelConfig& config) const {
  std::vector<std::string> problems;
  std::unordered_set<std::string_view> known;
  const ParameterLayout layout(config);
  for (const ParameterInfo& parameter : layout.parameters()) {
    known.insert(parameter.name);
    const TensorInfo* info = Info(parameter.name);
    if (info == nullptr) {
      problems.push_back(StrCat("tensor ", parameter.name, " is missing"));
      continue;
    }
    const auto dtype = SafetensorsDType(info->dtype);
    if (!dtype || !IsFloat(*dtype)) {
      problems.push_back(
          StrCat("tensor ", parameter.name, " is ", info->dtype, "; F32, F16 and BF16 weights are supported"));
    } else if (info->shape != HfShape(parameter)) {
      problems.push_back(StrCat("tensor ", parameter.name, " has shape ", info->ShapeText(), ", config.json asks for ",
                                TensorInfo{"", "", HfShape(parameter)}.ShapeText()));
    }
  }
  std::map<std::string, std::vector<int64_t>> state;  // of FP8 recipes, where it is there
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    state[SmoothScaleName(layer)] = {config.intermediate_size};
    state[Fp8AmaxName(layer)] = {12};
  }
  for (const TensorInfo& info : tensors_) {
    if (const auto it = state.find(info.name); it != state.end() && it->second == info.shape) continue;
    if (known.contains(info.name) || EndsWith(info.name, ".rotary_emb.inv_freq")) continue;
    if (config.tie_word_embeddings && info.name == "lm_head.weight") continue;
    problems.push_back(
        StrCat("tensor ", info.name, " is not part of a ", config.model_type, " model with this config.json"));
  }
  for (std::string& problem : problems) problem = OneLine(problem);
  return problems;
}

Status Checkpoint::CheckMatches(const ModelConfig& config) const {
  const std::vector<std::string> problems = Problems(config);
  if (problems.empty()) return {};
  const std::string more = problems.size() > 1 ? StrCat(" (and ", problems.size() - 1, " more problems)") : "";
  return InvalidArgument(StrCat(dir_, ": ", problems[0], more));
}

}  // namespace quern
