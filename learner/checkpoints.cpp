#include "learner/checkpoints.h"

#include <xxhash.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

constexpr int kFormat = 1;
constexpr char kPrefix[] = "step-";
constexpr char kUnfinished[] = ".unfinished";
constexpr char kManifest[] = "manifest.json";
constexpr double kMostOfTheTime = 0.02;
constexpr uint64_t kSpareBytes = uint64_t{16} << 20;  // left free for the store and the logs

std::string Hash(std::span<const uint8_t> bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return StrFormat("%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                   static_cast<unsigned long long>(hash.low64));
}

std::span<const uint8_t> Bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

}  // namespace

std::string FolderName(const std::string& stage) {
  std::string name;
  for (const char c : stage) {
    const bool plain =
        std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || (c == '.' && !name.empty());
    name += plain ? std::string(1, c) : StrFormat("%%%02X", static_cast<unsigned>(static_cast<unsigned char>(c)));
  }
  return name;
}

StageCheckpoints::StageCheckpoints(const CheckpointOptions& options, const std::string& stage, std::string stage_key)
    : options_(options),
      directory_(options.directory.empty() ? "" : JoinPath(options.directory, FolderName(stage))),
      stage_key_(std::move(stage_key)) {}

std::string StageCheckpoints::PathOf(int64_t step) const { return JoinPath(directory_, StrCat(kPrefix, step)); }

std::vector<int64_t> StageCheckpoints::Steps() const {
  std::vector<int64_t> steps;
  const Result<std::vector<std::string>> names = ListDirectory(directory_);
  if (!names.ok()) return steps;
  for (const std::string& name : *names) {
    if (!name.starts_with(kPrefix)) continue;
    int64_t step = 0;
    const char* end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + sizeof(kPrefix) - 1, end, step);
    if (parsed.ec == std::errc() && parsed.ptr == end) steps.push_back(step);
  }
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

Result<CheckpointMark> StageCheckpoints::Read(const std::string& directory,
                                              std::span<const CheckpointArray> arrays) const {
  QUERN_ASSIGN_OR_RETURN(const std::string text, ReadFile(JoinPath(directory, kManifest)));
  CheckpointMark mark;
  std::vector<MappedFile> files;
  try {
    // The first line is the hash of the rest.
    const size_t line = text.find('\n');
    if (line == std::string::npos || text.substr(0, line) != Hash(Bytes(text.substr(line + 1))))
      return DataLoss("manifest.json: damaged");
    const Json manifest = Json::parse(text.substr(line + 1));
    if (manifest.at("format") != kFormat) return FailedPrecondition("written by another version of Quern");
    if (manifest.at("stage_key") != stage_key_) return FailedPrecondition("of a stage with other options or data");
    mark.step = manifest.at("step");
    mark.state = manifest.at("state").dump();
    for (const CheckpointArray& array : arrays) {
      const Json& entry = manifest.at("files").at(array.name);
      QUERN_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(JoinPath(directory, array.name)));
      if (file.bytes().size() != array.bytes.size() || entry.at("bytes") != array.bytes.size())
        return DataLoss(StrCat(array.name, ": ", file.bytes().size(), " bytes, expected ", array.bytes.size()));
      if (entry.at("xxh3") != Hash(file.bytes()))
        return DataLoss(array.name + ": damaged: its hash is not that written");
      files.push_back(std::move(file));
    }
  } catch (const nlohmann::json::exception& error) {
    return DataLoss(std::string("manifest.json: ") + error.what());
  }
  for (size_t i = 0; i < arrays.size(); ++i)
    std::memcpy(arrays[i].bytes.data(), files[i].bytes().data(), arrays[i].bytes.size());
  return mark;
}

Result<std::optional<CheckpointMark>> StageCheckpoints::Load(std::span<const CheckpointArray> arrays) {
  if (directory_.empty()) return std::optional<CheckpointMark>();
  if (const auto names = ListDirectory(directory_); names.ok()) {
    for (const std::string& name : *names)
      if (name.ends_with(kUnfinished)) QUERN_RETURN_IF_ERROR(RemoveTree(JoinPath(directory_, name)));
  }
  const std::vector<int64_t> steps = Steps();
  for (size_t i = 0; i < steps.size(); ++i) {
    Result<CheckpointMark> mark = Read(PathOf(steps[i]), arrays);
    if (mark.ok()) {
      saved_step_ = mark->step;
      saved_at_ = Clock::now();
      return std::optional<CheckpointMark>(*mark);
    }
    LogWarning(
        StrCat(PathOf(steps[i]), ": ", mark.status().message(),
               i + 1 < steps.size() ? "; the checkpoint before it is tried" : "; the stage begins at its start"));
    QUERN_RETURN_IF_ERROR(RemoveTree(PathOf(steps[i])));
  }
  return std::optional<CheckpointMark>();
}

bool StageCheckpoints::Due(int64_t step) const {
  if (directory_.empty()) return false;
  if (options_.every_steps > 0 && step - saved_step_ >= options_.every_steps) return true;
  return options_.every_seconds > 0 &&
         SecondsSince(saved_at_) >= std::max(options_.every_seconds, save_seconds_ / kMostOfTheTime);
}

Status StageCheckpoints::WriteTo(const std::string& directory, const CheckpointMark& mark,
                                 std::span<const CheckpointArray> arrays) {
  QUERN_RETURN_IF_ERROR(MakeDirectories(directory));
  uint64_t needed = kSpareBytes;
  for (const CheckpointArray& array : arrays) needed += array.bytes.size();
  QUERN_ASSIGN_OR_RETURN(const uint64_t available, DiskFreeBytes(directory));
  if (available < needed)
    return ResourceExhausted(StrCat("a checkpoint needs ", HumanBytes(static_cast<double>(needed)), ", the disk has ",
                                    HumanBytes(static_cast<double>(available)), " left"));
  Json manifest = {{"format", kFormat},
                   {"stage_key", stage_key_},
                   {"step", mark.step},
                   {"state", Json::parse(mark.state)},
                   {"files", Json::object()}};
  for (const CheckpointArray& array : arrays) {
    QUERN_RETURN_IF_ERROR(WriteFileAtomic(JoinPath(directory, array.name), [&](const WriteSink& sink) {
      return sink(array.bytes.data(), array.bytes.size());
    }));
    manifest["files"][array.name] = {{"bytes", array.bytes.size()}, {"xxh3", Hash(array.bytes)}};
  }
  const std::string body = manifest.dump(2) + "\n";
  return WriteFileAtomic(JoinPath(directory, kManifest), Hash(Bytes(body)) + "\n" + body);
}

Status StageCheckpoints::Save(const CheckpointMark& mark, std::span<const CheckpointArray> arrays) {
  const auto begin = Clock::now();
  const std::string unfinished = PathOf(mark.step) + kUnfinished;
  Status status = RemoveTree(unfinished);
  if (status.ok()) status = WriteTo(unfinished, mark, arrays);
  if (status.ok()) status = RemoveTree(PathOf(mark.step));
  if (status.ok()) status = RenamePath(unfinished, PathOf(mark.step));
  saved_step_ = mark.step;
  saved_at_ = Clock::now();
  save_seconds_ = SecondsSince(begin);
  if (!status.ok()) {
    (void)RemoveTree(unfinished).ok();
    return status;
  }
  const std::vector<int64_t> steps = Steps();
  for (size_t i = static_cast<size_t>(std::max<int64_t>(1, options_.keep)); i < steps.size(); ++i)
    QUERN_RETURN_IF_ERROR(RemoveTree(PathOf(steps[i])));
  LogInfo(StrFormat("%s written in %.0f ms", PathOf(mark.step).c_str(), 1e3 * save_seconds_));
  return {};
}

Status StageCheckpoints::Remove() { return directory_.empty() ? Status() : RemoveTree(directory_); }

}  // namespace quern
