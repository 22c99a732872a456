#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/duration.h"
#include "base/file.h"
#include "base/strings.h"
#include "replay/client.h"
#include "replay/import.h"
#include "replay/store.h"
#include "service/command.h"
#include "transport/address.h"

namespace quern {

namespace {

constexpr auto kDeadline = std::chrono::seconds(60);

struct ReplayOptions {
  std::string store;
  std::string keys;  // folder, for tcp addresses
  std::string input;
  std::string to;
  std::string from;
  std::string format = "auto";
  std::string source;
  std::vector<std::string> tags;
  bool skip_bad = false;
  std::string output;
  // Filter.
  std::string run;
  std::string task;
  std::string prompt_contains;
  std::string version;
  std::string depth;
  std::string verdict;
  uint32_t guideline = 0;
  CLI::Option* has_guideline = nullptr;
  std::vector<std::string> without_tags;
  double min_return = 0;
  double max_return = 0;
  CLI::Option* has_min_return = nullptr;
  CLI::Option* has_max_return = nullptr;
  uint64_t limit = 0;
  bool count = false;
  // Prune.
  std::string max_bytes;
  std::string max_age;
  bool real_too = false;
  bool dry_run = false;
};
using Shared = std::shared_ptr<ReplayOptions>;

// An address, a store's directory, or a run directory (whose store is meant).
std::string StorePath(const std::string& store) {
  if (IsAddress(store) || PathExists(JoinPath(store, "CURRENT"))) return store;
  const std::string inside = JoinPath(store, "replay");
  return PathExists(JoinPath(inside, "CURRENT")) ? inside : store;
}

Result<std::unique_ptr<Replay>> OpenStore(const ReplayOptions& options, bool create) {
  OpenReplayOptions open;
  open.create_if_missing = create;
  const std::string store = StorePath(options.store);
  // A run's keys lie beside its store.
  std::string keys = options.keys;
  if (keys.empty() && !IsAddress(store)) keys = JoinPath(std::filesystem::path(store).parent_path(), "keys");
  if (!options.keys.empty() || PathExists(JoinPath(keys, "supervisor.secret"))) {
    QUERN_ASSIGN_OR_RETURN(open.client.keys, LoadKeys(keys, "supervisor"));
    QUERN_ASSIGN_OR_RETURN(open.client.server_key, LoadPublicKey(keys, "replay-server"));
  }
  return OpenReplay(store, open);
}

// What needs the directory itself.
Result<std::unique_ptr<Store>> OpenDirectory(const std::string& directory) {
  if (IsAddress(directory))
    return InvalidArgument(directory + ": this needs the store's directory; stop the server and give the directory");
  StoreOptions options;
  options.create_if_missing = false;
  return Store::Open(StorePath(directory), options);
}

Result<v1::Source> ParseSource(const std::string& name) {
  if (name.empty()) return v1::SOURCE_UNSPECIFIED;
  if (name == "real") return v1::SOURCE_REAL;
  if (name == "generated") return v1::SOURCE_GENERATED;
  return InvalidArgument("--source '" + name + "': expected real or generated");
}

struct Range {
  std::optional<uint64_t> low;
  std::optional<uint64_t> high;
};

// A..B, A.., ..B or A.
Result<Range> ParseRange(const std::string& option, const std::string& text) {
  const auto bad = [&] { return InvalidArgument(option + " '" + text + "': expected A..B, A.., ..B or A"); };
  const size_t dots = text.find("..");
  const std::string low = text.substr(0, dots);
  const std::string high = dots == std::string::npos ? low : text.substr(dots + 2);
  Range range;
  for (const auto& [part, out] : {std::pair(&low, &range.low), std::pair(&high, &range.high)}) {
    if (part->empty()) continue;
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(part->data(), part->data() + part->size(), value);
    if (error != std::errc() || end != part->data() + part->size()) return bad();
    *out = value;
  }
  if (!range.low && !range.high) return bad();
  return range;
}

Result<v1::Filter> MakeFilter(const ReplayOptions& options) {
  v1::Filter filter;
  filter.set_run(options.run);
  filter.set_task(options.task);
  filter.set_prompt_contains(options.prompt_contains);
  QUERN_ASSIGN_OR_RETURN(const v1::Source source, ParseSource(options.source));
  filter.set_source(source);
  for (const std::string& tag : options.tags) filter.add_tags(tag);
  for (const std::string& tag : options.without_tags) filter.add_without_tags(tag);
  if (options.has_min_return->count() > 0) filter.set_min_return(options.min_return);
  if (options.has_max_return->count() > 0) filter.set_max_return(options.max_return);
  if (!options.version.empty()) {
    QUERN_ASSIGN_OR_RETURN(const Range range, ParseRange("--version", options.version));
    if (range.low) filter.set_min_version(*range.low);
    if (range.high) filter.set_max_version(*range.high);
  }
  if (!options.depth.empty()) {
    constexpr uint64_t kMost = std::numeric_limits<uint32_t>::max();
    QUERN_ASSIGN_OR_RETURN(const Range range, ParseRange("--depth", options.depth));
    if (range.low) filter.set_min_depth(static_cast<uint32_t>(std::min(*range.low, kMost)));
    if (range.high) filter.set_max_depth(static_cast<uint32_t>(std::min(*range.high, kMost)));
  }
  if (options.has_guideline->count() > 0) filter.set_guideline(options.guideline);
  if (!options.verdict.empty()) {
    const Result<v1::Verdict> verdict = ParseVerdict(options.verdict);
    if (!verdict.ok()) return verdict.status().Annotate("--verdict");
    filter.set_verdict(*verdict);
  }
  return filter;
}

Result<int> Import(const ReplayOptions& options) {
  ImportOptions import;
  QUERN_ASSIGN_OR_RETURN(import.format, ParseImportFormat(options.format));
  QUERN_ASSIGN_OR_RETURN(const v1::Source source, ParseSource(options.source));
  if (source != v1::SOURCE_UNSPECIFIED) import.source = source;
  import.tags = options.tags;
  import.run = options.run;
  if (!PathExists(options.input)) return NotFound(options.input + ": no such file");
  QUERN_ASSIGN_OR_RETURN(const auto store, OpenStore(options, true));
  const bool terminal = isatty(STDERR_FILENO) != 0;
  const auto progress = [&](const ImportReport& report) {
    if (terminal) std::fprintf(stderr, "\r%llu rows", static_cast<unsigned long long>(report.rows));
  };
  const Result<ImportReport> report = ImportFile(*store, options.input, import, progress);
  if (terminal) std::fprintf(stderr, "\r\033[K");
  if (!report.ok()) return report.status();
  for (const BadLine& line : report->bad_lines)
    std::fprintf(stderr, "quern: %s:%llu: %s\n", options.input.c_str(), static_cast<unsigned long long>(line.number),
                 line.reason.c_str());
  if (report->bad > report->bad_lines.size())
    std::fprintf(stderr, "quern: %s: %llu more bad lines\n", options.input.c_str(),
                 static_cast<unsigned long long>(report->bad - report->bad_lines.size()));
  const nlohmann::ordered_json json = {
      {"rows", report->rows}, {"inserted", report->inserted}, {"duplicates", report->duplicates}, {"bad", report->bad}};
  if (options.output == "json")
    std::printf("%s\n", json.dump().c_str());
  else
    std::printf("imported %llu of %llu rows (%llu already there, %llu bad)\n",
                static_cast<unsigned long long>(report->inserted), static_cast<unsigned long long>(report->rows),
                static_cast<unsigned long long>(report->duplicates), static_cast<unsigned long long>(report->bad));
  return report->bad > 0 && !options.skip_bad ? kExitError : kExitOk;
}

std::string OneLine(std::string text, size_t width) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  if (text.size() <= width) return text;
  size_t end = width - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;  // not inside a character
  return text.substr(0, end) + "...";
}

Result<int> Query(const ReplayOptions& options) {
  QUERN_ASSIGN_OR_RETURN(const v1::Filter filter, MakeFilter(options));
  QUERN_ASSIGN_OR_RETURN(const auto store, OpenStore(options, false));
  if (options.count) {
    v1::QueryRequest request;
    *request.mutable_filter() = filter;
    request.set_count_only(true);
    QUERN_ASSIGN_OR_RETURN(const v1::QueryReply reply, store->Query(request, Deadline::After(kDeadline)));
    std::printf("%llu\n", static_cast<unsigned long long>(reply.count()));
    return kExitOk;
  }
  const bool table = options.output == "table";
  if (table)
    std::printf("%8s  %-10s %5s %-10s %8s %6s %5s %7s  %-20s %s\n", "number", "source", "depth", "verdict", "return",
                "turns", "done", "tokens", "task", "tags");
  QUERN_RETURN_IF_ERROR(ForEachRecord(*store, filter, options.limit, [&](uint64_t number, const v1::Trajectory& t) {
    if (!table) {
      std::printf("%s\n", FormatRow(t).c_str());
    } else {
      const std::vector<std::string> tags(t.tags().begin(), t.tags().end());
      std::printf("%8llu  %-10s %5u %-10s %8.3f %6d %5s %7zu  %-20s %s\n", static_cast<unsigned long long>(number),
                  t.source() == v1::SOURCE_REAL ? "real" : "generated", t.generation_depth(),
                  t.verdict() == v1::VERDICT_UNSPECIFIED ? "-" : VerdictName(t.verdict()).c_str(), t.episode_return(),
                  t.turns_size(), t.success() ? "won" : (t.done() ? "yes" : "cut"), t.token_ids().size() / 4,
                  OneLine(t.task(), 20).c_str(), StrJoin(tags, ",").c_str());
    }
    return std::ferror(stdout) != 0 ? Cancelled("cannot write to the standard output") : Status();
  }));
  return kExitOk;
}

Result<int> Export(const ReplayOptions& options) {
  QUERN_ASSIGN_OR_RETURN(const v1::Filter filter, MakeFilter(options));
  QUERN_ASSIGN_OR_RETURN(const auto store, OpenStore(options, false));
  const ExportFormat format = options.format == "messages" ? ExportFormat::kMessages : ExportFormat::kQuern;
  QUERN_ASSIGN_OR_RETURN(const ExportReport report, ExportJsonl(*store, filter, options.to, format));
  std::printf("exported %llu records to %s\n", static_cast<unsigned long long>(report.rows), options.to.c_str());
  if (report.without_messages > 0)
    std::fprintf(stderr,
                 "quern: %llu records have tokens but no messages and were left out (--format quern has them)\n",
                 static_cast<unsigned long long>(report.without_messages));
  return kExitOk;
}

Result<int> Stats(const ReplayOptions& options) {
  v1::StatsRequest request;
  QUERN_ASSIGN_OR_RETURN(*request.mutable_filter(), MakeFilter(options));
  QUERN_ASSIGN_OR_RETURN(const auto store, OpenStore(options, false));
  QUERN_ASSIGN_OR_RETURN(const v1::StatsReply s, store->Stats(request, Deadline::After(kDeadline)));
  if (options.output == "json") {
    nlohmann::ordered_json tags = nlohmann::ordered_json::object();
    for (const v1::TagCount& tag : s.tags()) tags[tag.tag()] = tag.records();
    const nlohmann::ordered_json json = {{"records", s.records()},
                                         {"tokens", s.tokens()},
                                         {"bytes", s.bytes()},
                                         {"watermark", s.watermark()},
                                         {"mean_return", s.mean_return()},
                                         {"min_return", s.min_return()},
                                         {"max_return", s.max_return()},
                                         {"return_variance", s.return_variance()},
                                         {"success_rate", s.success_rate()},
                                         {"real", s.real()},
                                         {"generated", s.generated()},
                                         {"duplicates", s.duplicates()},
                                         {"tags", tags}};
    std::printf("%s\n", json.dump().c_str());
    return kExitOk;
  }
  std::printf("records     %llu (%llu real, %llu generated), newest number %llu\n",
              static_cast<unsigned long long>(s.records()), static_cast<unsigned long long>(s.real()),
              static_cast<unsigned long long>(s.generated()), static_cast<unsigned long long>(s.watermark()));
  std::printf("size        %s, %llu tokens\n", HumanBytes(static_cast<double>(s.bytes())).c_str(),
              static_cast<unsigned long long>(s.tokens()));
  std::printf("return      mean %.4f, min %.4f, max %.4f, variance %.4f\n", s.mean_return(), s.min_return(),
              s.max_return(), s.return_variance());
  std::printf("success     %.1f %%\n", 100 * s.success_rate());
  std::printf("duplicates  %llu refused\n", static_cast<unsigned long long>(s.duplicates()));
  for (const v1::TagCount& tag : s.tags())
    std::printf("tag         %s: %llu\n", tag.tag().c_str(), static_cast<unsigned long long>(tag.records()));
  return kExitOk;
}

Result<int> Verify(const ReplayOptions& options) {
  QUERN_ASSIGN_OR_RETURN(const auto store, OpenDirectory(options.store));
  QUERN_ASSIGN_OR_RETURN(const VerifyReport report, store->Verify());
  for (const std::string& problem : report.problems)
    std::fprintf(stderr, "quern: %s: %s\n", store->directory().c_str(), problem.c_str());
  std::printf("%llu records, %s, %zu problems\n", static_cast<unsigned long long>(report.records),
              HumanBytes(static_cast<double>(report.bytes)).c_str(), report.problems.size());
  return report.problems.empty() ? kExitOk : kExitError;
}

Result<int> Backup(const ReplayOptions& options) {
  std::error_code error;
  const std::string to = std::filesystem::absolute(options.to, error).lexically_normal();
  if (error) return FromErrno(error.value(), options.to);
  QUERN_ASSIGN_OR_RETURN(const auto replay, OpenStore(options, false));
  uint64_t records = 0;
  if (auto* const client = dynamic_cast<ReplayClient*>(replay.get()); client != nullptr) {
    QUERN_ASSIGN_OR_RETURN(const v1::BackupReply reply, client->Backup(to, Deadline::After(kDeadline)));
    records = reply.watermark();
  } else if (auto* const store = dynamic_cast<Store*>(replay.get()); store != nullptr) {
    QUERN_RETURN_IF_ERROR(store->Backup(to));
    records = store->watermark();
  }
  std::printf("%llu records copied to %s\n", static_cast<unsigned long long>(records), options.to.c_str());
  return kExitOk;
}

// Checked before and after: a damaged backup is not passed on.
Result<int> Restore(const ReplayOptions& options) {
  if (PathExists(options.to)) return AlreadyExists(options.to + ": exists already; give a new directory");
  {
    QUERN_ASSIGN_OR_RETURN(const auto store, OpenDirectory(options.from));
    QUERN_ASSIGN_OR_RETURN(const VerifyReport report, store->Verify());
    if (!report.problems.empty())
      return DataLoss(StrCat(options.from, ": the backup is damaged (", report.problems[0], "); nothing was restored"));
    QUERN_RETURN_IF_ERROR(store->Backup(options.to));
  }
  QUERN_ASSIGN_OR_RETURN(const auto restored, OpenDirectory(options.to));
  QUERN_ASSIGN_OR_RETURN(const VerifyReport report, restored->Verify());
  if (!report.problems.empty()) return DataLoss(StrCat(options.to, ": ", report.problems[0]));
  std::printf("%llu records restored to %s\n", static_cast<unsigned long long>(report.records), options.to.c_str());
  return kExitOk;
}

Result<int> Compact(const ReplayOptions& options) {
  QUERN_ASSIGN_OR_RETURN(const auto store, OpenDirectory(options.store));
  QUERN_RETURN_IF_ERROR(store->Compact());
  std::printf("compacted %s\n", store->directory().c_str());
  return kExitOk;
}

// "10GiB", "500MB", "1e9", "12345" in bytes.
std::optional<uint64_t> ParseBytes(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || value < 0) return std::nullopt;
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

Result<int> Prune(const ReplayOptions& options) {
  PruneOptions prune{.real_too = options.real_too, .dry_run = options.dry_run};
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
    const auto now =
        std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch());
    prune.before_unix_ms = now.count() - 1000 * *age;
  }
  QUERN_ASSIGN_OR_RETURN(const auto store, OpenDirectory(options.store));
  QUERN_ASSIGN_OR_RETURN(const PruneReport report, store->Prune(prune));
  std::printf("%s %llu records, %s; %s stay\n", options.dry_run ? "would prune" : "pruned",
              static_cast<unsigned long long>(report.records), HumanBytes(static_cast<double>(report.bytes)).c_str(),
              HumanBytes(static_cast<double>(report.left_bytes)).c_str());
  if (report.spared_real > 0)
    std::fprintf(stderr, "quern: %llu real records were spared (--real prunes them too)\n",
                 static_cast<unsigned long long>(report.spared_real));
  return kExitOk;
}

void AddStore(CLI::App* command, const Shared& options) {
  command->add_option("--store", options->store, "store directory, run directory, or a running store's address")
      ->required();
}

void AddKeys(CLI::App* command, const Shared& options) {
  command->add_option("--keys", options->keys, "a run's keys folder, for a tcp:// address");
}

void AddFilter(CLI::App* command, const Shared& options) {
  command->add_option("--run", options->run, "only records of this run");
  command->add_option("--source", options->source, "only real or only generated records");
  options->has_min_return = command->add_option("--min-return", options->min_return, "lowest return");
  options->has_max_return = command->add_option("--max-return", options->max_return, "highest return");
  command->add_option("--version", options->version, "policy version: A..B, A.., ..B or A");
  command->add_option("--depth", options->depth, "generation depth (0: real data): A..B, A.., ..B or A");
  command->add_option("--verdict", options->verdict, "only verified, hinted, unverified or failed paths");
  options->has_guideline =
      command->add_option("--guideline", options->guideline, "only chains of this guideline (0: of none)");
  command->add_option("--tag", options->tags, "only records with this tag (repeat: all of them)")
      ->allow_extra_args(false);
  command->add_option("--without-tag", options->without_tags, "no records with this tag")->allow_extra_args(false);
  command->add_option("--task", options->task, "only records of this task");
  command->add_option("--prompt-contains", options->prompt_contains, "text that the prompt must contain");
}

void AddOutput(CLI::App* command, const Shared& options, const std::string& fallback,
               const std::vector<std::string>& choices) {
  options->output = fallback;
  command->add_option("-o,--output", options->output, "output format")
      ->capture_default_str()
      ->check(CLI::IsMember(choices));
}

}  // namespace

void AddReplayCommand(CommandSet& commands) {
  CLI::App* replay = commands.app().add_subcommand("replay", "look into, fill and copy replay stores");
  replay->require_subcommand(1);
  const auto add = [&](const char* name, const char* help, Result<int> (*body)(const ReplayOptions&)) {
    auto options = std::make_shared<ReplayOptions>();
    CLI::App* command = replay->add_subcommand(name, help);
    commands.SetBody(command, [options, body] { return body(*options); });
    return std::pair(command, options);
  };
  {
    auto [command, options] = add("import", "read trajectories from JSON Lines, or files of questions", Import);
    AddStore(command, options);
    AddKeys(command, options);
    command->add_option("--input", options->input, "JSON Lines file, or a file of questions as it is published")
        ->required();
    command->add_option(
        "--format", options->format,
        "auto, quern, messages, prompt-completion, lmrl; questions: plain, gsm8k, svamp, aqua, strategyqa, "
        "arc, sums, game24");
    command->add_option("--source", options->source, "real or generated, set on every row");
    command->add_option("--tag", options->tags, "tag added to every row (may be repeated)")->allow_extra_args(false);
    command->add_option("--run", options->run, "run of rows that name none");
    command->add_flag("--skip-bad", options->skip_bad, "exit 0 although some lines are bad");
    AddOutput(command, options, "text", {"text", "json"});
  }
  {
    auto [command, options] = add("query", "print matching records", Query);
    AddStore(command, options);
    AddKeys(command, options);
    AddFilter(command, options);
    command->add_option("--limit", options->limit, "at most this many (0: all)");
    command->add_flag("--count", options->count, "print only how many match");
    AddOutput(command, options, "table", {"table", "jsonl"});
  }
  {
    auto [command, options] = add("export", "write matching records to a JSON Lines file", Export);
    AddStore(command, options);
    AddKeys(command, options);
    AddFilter(command, options);
    command->add_option("--to", options->to, "file to write")->required();
    options->format = "quern";
    command->add_option("--format", options->format, "quern: import gives equal records; messages: the texts")
        ->capture_default_str()
        ->check(CLI::IsMember({"quern", "messages"}));
  }
  {
    auto [command, options] = add("stats", "counts, sizes and returns", Stats);
    AddStore(command, options);
    AddKeys(command, options);
    AddFilter(command, options);
    AddOutput(command, options, "text", {"text", "json"});
  }
  {
    auto [command, options] = add("verify", "read everything and check it", Verify);
    AddStore(command, options);
  }
  {
    auto [command, options] = add("compact", "let the store tidy its files", Compact);
    AddStore(command, options);
  }
  {
    auto [command, options] = add("prune", "throw away the oldest generated records", Prune);
    AddStore(command, options);
    command->add_option("--max-bytes", options->max_bytes, "what all records together may have: 10GiB, 500MB, bytes");
    command->add_option("--max-age", options->max_age, "older records go: 90s, 15m, 12h, 7d");
    command->add_flag("--real", options->real_too, "real data as well");
    command->add_flag("--dry-run", options->dry_run, "only say what would go");
  }
  {
    auto [command, options] = add("backup", "copy a store, also while a job uses it", Backup);
    AddStore(command, options);
    AddKeys(command, options);
    command->add_option("--to", options->to, "new directory")->required();
  }
  {
    auto [command, options] = add("restore", "check a backup and copy it to where it is to be used", Restore);
    command->add_option("--from", options->from, "backup directory")->required();
    command->add_option("--to", options->to, "new directory")->required();
  }
}

}  // namespace quern
