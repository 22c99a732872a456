#include <unistd.h>

#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/duration.h"
#include "base/file.h"
#include "base/strings.h"
#include "replay/client.h"
#include "service/command.h"
#include "service/commands/replay_command.h"
#include "transport/address.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

constexpr auto kCopyDeadline = std::chrono::hours(1);  // to another disk

// What needs the directory itself.
Result<std::unique_ptr<Store>> OpenDirectory(const std::string& directory, bool read_only) {
  if (IsAddress(directory))
    return InvalidArgument(directory + ": this needs the store's directory; stop the server and give the directory");
  StoreOptions options;
  options.create_if_missing = false;
  options.read_only = read_only;
  return Store::Open(StorePath(directory), options);
}

Result<std::string> AbsolutePath(const std::string& path) {
  std::error_code error;
  std::string absolute = std::filesystem::absolute(path, error).lexically_normal();
  if (error) return FromErrno(error.value(), path);
  while (absolute.size() > 1 && absolute.back() == '/') absolute.pop_back();
  return absolute;
}

void PrintResult(const ReplayOptions& options, const Json& json, const std::string& text) {
  std::printf("%s\n", options.output == "json" ? json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str()
                                               : text.c_str());
}

std::string Bytes(uint64_t bytes) { return HumanBytes(static_cast<double>(bytes)); }

// `shown`: what the problems call the directory.
Result<VerifyReport> VerifyDirectory(const std::string& directory, const std::string& shown) {
  QUERN_ASSIGN_OR_RETURN(const auto store, OpenDirectory(directory, true));
  QUERN_ASSIGN_OR_RETURN(VerifyReport report, store->Verify());
  for (std::string& problem : report.problems)
    for (size_t at = 0; (at = problem.find(directory, at)) != std::string::npos; at += shown.size())
      problem.replace(at, directory.size(), shown);
  return report;
}

}  // namespace

// Of a store that a server has open a copy is read, which shares its files.
Result<int> VerifyStore(const ReplayOptions& options) {
  const std::string directory = StorePath(options.store);
  Result<VerifyReport> report = VerifyReport();
  if (!IsAddress(directory) && StoreInUse(directory)) {
    QUERN_ASSIGN_OR_RETURN(const auto replay, OpenStore(options, StoreUse::kRead));
    auto* const client = dynamic_cast<ReplayClient*>(replay.get());
    if (client == nullptr) return Unavailable(directory + ": its server has just left: try again");
    QUERN_ASSIGN_OR_RETURN(const std::string copy, AbsolutePath(StrCat(directory, ".verify-", getpid())));
    QUERN_RETURN_IF_ERROR(client->Backup(copy, Deadline::After(kCopyDeadline), true).status());
    report = VerifyDirectory(copy, directory);
    QUERN_RETURN_IF_ERROR(RemoveTree(copy));
  } else {
    report = VerifyDirectory(directory, directory);
  }
  if (!report.ok()) {  // it cannot even be opened
    if (report.status().code() != StatusCode::kDataLoss) return report.status();
    std::string problem = report.status().message();
    report = VerifyReport();
    report->problems = {std::move(problem)};
  }
  for (const std::string& problem : report->problems) std::fprintf(stderr, "quern: %s\n", problem.c_str());
  PrintResult(options, {{"records", report->records}, {"bytes", report->bytes}, {"problems", report->problems}},
              StrCat(report->records, " records, ", Bytes(report->bytes), ", ", report->problems.size(),
                     report->problems.size() == 1 ? " problem" : " problems"));
  return report->problems.empty() ? kExitOk : kExitError;
}

Result<int> BackupStore(const ReplayOptions& options) {
  QUERN_ASSIGN_OR_RETURN(const std::string to, AbsolutePath(options.to));
  if (PathExists(to)) return AlreadyExists(options.to + ": exists already; give a new directory");
  QUERN_ASSIGN_OR_RETURN(const auto replay, OpenStore(options, StoreUse::kWrite));
  uint64_t records = 0;
  if (auto* const client = dynamic_cast<ReplayClient*>(replay.get()); client != nullptr) {
    QUERN_ASSIGN_OR_RETURN(const v1::BackupReply reply, client->Backup(to, Deadline::After(kCopyDeadline)));
    records = reply.watermark();
  } else if (auto* const store = dynamic_cast<Store*>(replay.get()); store != nullptr) {
    QUERN_RETURN_IF_ERROR(store->Backup(to));
    records = store->watermark();
  }
  PrintResult(options, {{"watermark", records}, {"to", to}},
              StrCat("copied to ", options.to, " with all records up to number ", records));
  return kExitOk;
}

// Checked before and after: a damaged backup is not passed on.
Result<int> RestoreStore(const ReplayOptions& options) {
  QUERN_ASSIGN_OR_RETURN(const std::string to, AbsolutePath(options.to));
  if (PathExists(to)) return AlreadyExists(options.to + ": exists already; give a new directory");
  const std::string from = StorePath(options.from);
  if (!IsAddress(from) && StoreInUse(from))
    return FailedPrecondition(from + ": is a store in use, not a backup: make one with 'quern replay backup'");
  QUERN_ASSIGN_OR_RETURN(const VerifyReport before, VerifyDirectory(from, from));
  if (!before.problems.empty())
    return DataLoss(StrCat(from, ": the backup is damaged (", before.problems[0], "); nothing was restored"));
  QUERN_RETURN_IF_ERROR(CopyStore(from, to));
  QUERN_ASSIGN_OR_RETURN(const VerifyReport report, VerifyDirectory(to, options.to));
  if (!report.problems.empty()) return DataLoss(StrCat(options.to, ": ", report.problems[0]));
  PrintResult(options, {{"records", report.records}, {"to", to}},
              StrCat(report.records, " records restored to ", options.to));
  return kExitOk;
}

Result<int> CompactStore(const ReplayOptions& options) {
  QUERN_ASSIGN_OR_RETURN(const auto store, OpenDirectory(options.store, false));
  QUERN_RETURN_IF_ERROR(store->Compact());
  PrintResult(options, {{"store", store->directory()}}, "compacted " + store->directory());
  return kExitOk;
}

namespace {

// "10GiB", "500MB", "1e9", "12345" in bytes.
std::optional<uint64_t> ParseBytes(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || !(value >= 0)) return std::nullopt;
  std::string unit(end, text.data() + text.size());
  static constexpr const char* kPrefixes = "KMGT";
  double scale = 1;
  if (!unit.empty() && unit != "B") {
    const char* const prefix = std::strchr(kPrefixes, std::toupper(static_cast<unsigned char>(unit[0])));
    const std::string rest = unit.substr(1);
    if (prefix == nullptr || (rest != "" && rest != "B" && rest != "iB")) return std::nullopt;
    scale = std::pow(rest == "iB" ? 1024.0 : 1000.0, static_cast<double>(prefix - kPrefixes + 1));
  }
  if (value * scale > 9e18) return std::nullopt;
  return static_cast<uint64_t>(value * scale);
}

}  // namespace

Result<int> PruneStore(const ReplayOptions& options) {
  PruneOptions prune{.real_too = options.real_too, .keep_tags = options.keep_tags, .dry_run = options.dry_run};
  if (options.max_bytes.empty() && options.max_age.empty())
    return UsageError("prune: give --max-bytes, --max-age or both");
  if (!options.max_bytes.empty()) {
    const auto bytes = ParseBytes(options.max_bytes);
    if (!bytes) return UsageError("--max-bytes '" + options.max_bytes + "': expected as 10GiB, 500MB or bytes");
    prune.max_bytes = *bytes;
  }
  if (!options.max_age.empty()) {
    const auto age = ParseSeconds(options.max_age);
    if (!age) return UsageError("--max-age '" + options.max_age + "': expected as 90s, 15m, 12h or 7d");
    prune.before_unix_ms = static_cast<int64_t>(1e3 * UnixSeconds()) - 1000 * *age;
  }
  if (StoreInUse(StorePath(options.store)))
    return FailedPrecondition(StorePath(options.store) +
                              ": in use: a running job prunes by its replay.max_bytes and replay.max_age_s");
  QUERN_ASSIGN_OR_RETURN(const auto store, OpenDirectory(options.store, options.dry_run));
  QUERN_ASSIGN_OR_RETURN(const PruneReport report, store->Prune(prune));
  PrintResult(options,
              {{"dry_run", options.dry_run},
               {"records", report.records},
               {"bytes", report.bytes},
               {"left_bytes", report.left_bytes},
               {"spared_real", report.spared_real}},
              StrCat(options.dry_run ? "would prune " : "pruned ", report.records, " records, ", Bytes(report.bytes),
                     "; ", Bytes(report.left_bytes), " stay"));
  if (report.spared_real > 0)
    std::fprintf(stderr, "quern: %llu real records were spared (--real prunes them too)\n",
                 static_cast<unsigned long long>(report.spared_real));
  return kExitOk;
}

}  // namespace quern
