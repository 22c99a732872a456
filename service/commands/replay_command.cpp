#include "service/commands/replay_command.h"

#include <unistd.h>

#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/file.h"
#include "base/strings.h"
#include "replay/import.h"
#include "service/command.h"
#include "transport/address.h"

namespace quern {

std::string StorePath(const std::string& given) {
  std::string store = given;
  while (store.size() > 1 && store.back() == '/') store.pop_back();
  if (IsAddress(store) || PathExists(JoinPath(store, "CURRENT"))) return store;
  const std::string inside = JoinPath(store, "replay");
  return PathExists(JoinPath(inside, "CURRENT")) ? inside : store;
}

Result<std::unique_ptr<Replay>> OpenStore(const ReplayOptions& options, StoreUse use) {
  OpenReplayOptions open;
  open.create_if_missing = use == StoreUse::kCreate;
  open.read_only = use == StoreUse::kRead;
  open.client.patience = std::chrono::seconds(10);  // a server that is started again is waited for
  const std::string store = StorePath(options.store);
  // A run's keys lie beside its store.
  std::string keys = options.keys;
  if (keys.empty() && !IsAddress(store)) keys = JoinPath(std::filesystem::path(store).parent_path(), "keys");
  if (!options.keys.empty() || PathExists(JoinPath(keys, "supervisor.secret"))) {
    QUERN_ASSIGN_OR_RETURN(open.client.keys, LoadKeys(keys, "supervisor"));
    QUERN_ASSIGN_OR_RETURN(open.client.server_key, LoadPublicKey(keys, "replay-server"));
  } else if (store.starts_with("tcp://")) {
    return InvalidArgument(store + ": give --keys as well, the folder RUN/keys of its run");
  }
  return OpenReplay(store, open);
}

namespace {

using Json = nlohmann::ordered_json;

constexpr auto kDeadline = std::chrono::seconds(60);

v1::Source ParseSource(const std::string& name) {
  if (name == "real") return v1::SOURCE_REAL;
  return name == "generated" ? v1::SOURCE_GENERATED : v1::SOURCE_UNSPECIFIED;
}

struct Range {
  std::optional<uint64_t> low;
  std::optional<uint64_t> high;
};

// A..B, A.., ..B or A.
std::optional<Range> ParseRange(const std::string& text) {
  const size_t dots = text.find("..");
  const std::string low = text.substr(0, dots);
  const std::string high = dots == std::string::npos ? low : text.substr(dots + 2);
  Range range;
  for (const auto& [part, out] : {std::pair(&low, &range.low), std::pair(&high, &range.high)}) {
    if (part->empty()) continue;
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(part->data(), part->data() + part->size(), value);
    if (error != std::errc() || end != part->data() + part->size()) return std::nullopt;
    *out = value;
  }
  if ((!range.low && !range.high) || (range.low && range.high && *range.low > *range.high)) return std::nullopt;
  return range;
}

const CLI::Validator kRange(
    [](std::string& text) {
      return ParseRange(text) ? std::string() : "must be A..B (A at most B), A.., ..B or A, not '" + text + "'";
    },
    "");
const CLI::Validator kFinite(
    [](std::string& text) {
      double value = 0;
      return CLI::detail::lexical_cast(text, value) && std::isfinite(value) ? std::string()
                                                                            : "must be a number, not '" + text + "'";
    },
    "");

v1::Filter MakeFilter(const ReplayOptions& options) {
  v1::Filter filter;
  filter.set_run(options.run);
  filter.set_task(options.task);
  filter.set_prompt(options.prompt);
  filter.set_prompt_contains(options.prompt_contains);
  filter.set_source(ParseSource(options.source));
  for (const std::string& tag : options.tags) filter.add_tags(tag);
  for (const std::string& tag : options.without_tags) filter.add_without_tags(tag);
  if (options.has_min_return->count() > 0) filter.set_min_return(options.min_return);
  if (options.has_max_return->count() > 0) filter.set_max_return(options.max_return);
  if (const auto range = ParseRange(options.version)) {
    if (range->low) filter.set_min_version(*range->low);
    if (range->high) filter.set_max_version(*range->high);
  }
  if (const auto range = ParseRange(options.depth)) {
    constexpr uint64_t kMost = std::numeric_limits<uint32_t>::max();
    if (range->low) filter.set_min_depth(static_cast<uint32_t>(std::min(*range->low, kMost)));
    if (range->high) filter.set_max_depth(static_cast<uint32_t>(std::min(*range->high, kMost)));
  }
  if (const auto range = ParseRange(options.tokens)) {
    if (range->low) filter.set_min_tokens(*range->low);
    if (range->high) filter.set_max_tokens(*range->high);
  }
  if (options.has_guideline->count() > 0) filter.set_guideline(options.guideline);
  if (!options.verdict.empty()) filter.set_verdict(*ParseVerdict(options.verdict));
  return filter;
}

Result<int> Import(const ReplayOptions& options) {
  ImportOptions import;
  QUERN_ASSIGN_OR_RETURN(import.format, ParseImportFormat(options.format));
  const v1::Source source = ParseSource(options.source);
  if (source != v1::SOURCE_UNSPECIFIED) import.source = source;
  import.tags = options.tags;
  import.run = options.run;
  if (options.input != "-" && !PathExists(options.input)) return NotFound(options.input + ": no such file");
  QUERN_ASSIGN_OR_RETURN(const auto store, OpenStore(options, StoreUse::kCreate));
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
  const Json json = {
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

void PrintTableHead() {
  std::printf("%8s  %-10s %5s %7s %-10s %8s %6s %5s %7s  %-20s %s\n", "number", "source", "depth", "version", "verdict",
              "return", "turns", "done", "tokens", "task", "tags");
}

Status PrintRecord(const ReplayOptions& options, uint64_t number, const v1::Trajectory& t) {
  if (options.output == "numbers") {
    std::printf("%llu\n", static_cast<unsigned long long>(number));
  } else if (options.output == "jsonl") {
    std::printf("%s\n", FormatRow(t).c_str());
  } else {
    uint64_t version = 0;
    for (const v1::PolicyVersion& policy : t.policies()) version = std::max<uint64_t>(version, policy.version());
    const std::vector<std::string> tags(t.tags().begin(), t.tags().end());
    std::printf("%8llu  %-10s %5u %7llu %-10s %8.3f %6d %5s %7zu  %-20s %s\n", static_cast<unsigned long long>(number),
                t.source() == v1::SOURCE_REAL ? "real" : "generated", t.generation_depth(),
                static_cast<unsigned long long>(version),
                t.verdict() == v1::VERDICT_UNSPECIFIED ? "-" : VerdictName(t.verdict()).c_str(), t.episode_return(),
                t.turns_size(), t.success() ? "won" : (t.done() ? "yes" : "cut"), t.token_ids().size() / 4,
                OneLine(t.task(), 20).c_str(), StrJoin(tags, ",").c_str());
  }
  return std::ferror(stdout) != 0 ? Cancelled("cannot write to the standard output") : Status();
}

Result<int> Query(const ReplayOptions& options) {
  const v1::Filter filter = MakeFilter(options);
  QUERN_ASSIGN_OR_RETURN(const auto store, OpenStore(options, StoreUse::kRead));
  if (options.count) {
    v1::QueryRequest request;
    *request.mutable_filter() = filter;
    request.set_count_only(true);
    QUERN_ASSIGN_OR_RETURN(const v1::QueryReply reply, store->Query(request, Deadline::After(kDeadline)));
    std::printf("%llu\n", static_cast<unsigned long long>(reply.count()));
    return kExitOk;
  }
  if (options.output == "table") PrintTableHead();
  QUERN_RETURN_IF_ERROR(ForEachRecord(*store, filter, options.limit, [&](uint64_t number, const v1::Trajectory& t) {
    return PrintRecord(options, number, t);
  }));
  return kExitOk;
}

// What a training step of these settings draws.
Result<int> Sample(const ReplayOptions& options) {
  QUERN_ASSIGN_OR_RETURN(const auto store, OpenStore(options, StoreUse::kRead));
  v1::SampleRequest request;
  *request.mutable_filter() = MakeFilter(options);
  request.set_watermark(options.watermark);
  if (options.watermark == 0) {
    QUERN_ASSIGN_OR_RETURN(const v1::StatsReply stats, store->Stats(v1::StatsRequest(), Deadline::After(kDeadline)));
    if (stats.watermark() == 0) return NotFound(StorePath(options.store) + ": holds no record to draw from");
    request.set_watermark(stats.watermark());
  }
  request.set_seed(options.seed);
  request.set_step(options.step);
  request.set_count(options.batch);
  request.set_top_fraction(static_cast<float>(options.top_fraction));
  request.set_window(options.window);
  request.set_priority_exponent(static_cast<float>(options.priority_exponent));
  if (options.selector == "prioritised") request.set_selector(v1::SELECTOR_PRIORITISED);
  if (options.selector == "fifo") request.set_selector(v1::SELECTOR_FIFO);
  QUERN_ASSIGN_OR_RETURN(const v1::SampleReply reply, store->Sample(request, Deadline::After(kDeadline)));
  std::fprintf(stderr, "watermark %llu, %llu records match\n", static_cast<unsigned long long>(request.watermark()),
               static_cast<unsigned long long>(reply.candidates()));
  if (options.output == "table") PrintTableHead();
  v1::Trajectory trajectory;
  for (int i = 0; i < reply.trajectories_size(); ++i) {
    if (!trajectory.ParseFromString(reply.trajectories(i)))
      return DataLoss(StrCat("record ", reply.numbers(i), " does not parse"));
    QUERN_RETURN_IF_ERROR(PrintRecord(options, reply.numbers(i), trajectory));
  }
  return kExitOk;
}

Status WriteToStdout(const void* data, size_t size) {
  return std::fwrite(data, 1, size, stdout) == size ? Status() : Cancelled("cannot write to the standard output");
}

Result<int> Export(const ReplayOptions& options) {
  const v1::Filter filter = MakeFilter(options);
  QUERN_ASSIGN_OR_RETURN(const auto store, OpenStore(options, StoreUse::kRead));
  const ExportFormat format = options.format == "messages" ? ExportFormat::kMessages : ExportFormat::kQuern;
  const bool to_stdout = options.to == "-";
  QUERN_ASSIGN_OR_RETURN(const ExportReport report, to_stdout ? ExportJsonl(*store, filter, WriteToStdout, format)
                                                              : ExportJsonl(*store, filter, options.to, format));
  if (options.output == "json") {
    const Json json = {{"records", report.rows}, {"without_messages", report.without_messages}, {"to", options.to}};
    std::fprintf(to_stdout ? stderr : stdout, "%s\n", json.dump().c_str());
  } else {
    std::fprintf(to_stdout ? stderr : stdout, "exported %llu records to %s\n",
                 static_cast<unsigned long long>(report.rows), to_stdout ? "standard output" : options.to.c_str());
  }
  if (report.without_messages > 0)
    std::fprintf(stderr,
                 "quern: %llu records have tokens but no messages and were left out (--format quern has them)\n",
                 static_cast<unsigned long long>(report.without_messages));
  return kExitOk;
}

template <typename Key>
std::map<Key, uint64_t> Sorted(const google::protobuf::Map<Key, uint64_t>& counts) {
  return std::map<Key, uint64_t>(counts.begin(), counts.end());
}

Result<int> Stats(const ReplayOptions& options) {
  v1::StatsRequest request;
  *request.mutable_filter() = MakeFilter(options);
  request.set_breakdown(true);
  QUERN_ASSIGN_OR_RETURN(const auto store, OpenStore(options, StoreUse::kRead));
  QUERN_ASSIGN_OR_RETURN(const v1::StatsReply s, store->Stats(request, Deadline::After(kDeadline)));
  if (options.output == "json") {
    Json tags = Json::object(), runs = Json::object(), versions = Json::object(), depths = Json::object();
    Json returns = Json::array();
    for (const v1::TagCount& tag : s.tags()) tags[tag.tag()] = tag.records();
    for (const v1::TagCount& run : s.runs()) runs[run.tag()] = run.records();
    for (const auto& [version, records] : Sorted(s.versions())) versions[std::to_string(version)] = records;
    for (const auto& [depth, records] : Sorted(s.depths())) depths[std::to_string(depth)] = records;
    for (const v1::ReturnBucket& bucket : s.returns())
      returns.push_back({{"low", bucket.low()}, {"high", bucket.high()}, {"records", bucket.records()}});
    const Json json = {{"records", s.records()},
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
                       {"tags", tags},
                       {"runs", runs},
                       {"versions", versions},
                       {"depths", depths},
                       {"returns", returns}};
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
  const auto line = [](const char* what, const std::string& name, uint64_t records) {
    std::printf("%-11s %s: %llu\n", what, name.c_str(), static_cast<unsigned long long>(records));
  };
  for (const v1::ReturnBucket& bucket : s.returns())
    line("return",
         bucket.low() == bucket.high() ? StrFormat("%g", bucket.low())
                                       : StrFormat("%g to %g", bucket.low(), bucket.high()),
         bucket.records());
  for (const v1::TagCount& run : s.runs()) line("run", run.tag().empty() ? "(none)" : run.tag(), run.records());
  for (const auto& [version, records] : Sorted(s.versions()))
    line("version", version == 0 ? "(none)" : std::to_string(version), records);
  for (const auto& [depth, records] : Sorted(s.depths())) line("depth", std::to_string(depth), records);
  for (const v1::TagCount& tag : s.tags()) line("tag", tag.tag(), tag.records());
  return kExitOk;
}

using Shared = SharedReplayOptions;

void AddStore(CLI::App* command, const Shared& options) {
  command->add_option("--store", options->store, "store directory, run directory, or a running store's address")
      ->required();
}

void AddKeys(CLI::App* command, const Shared& options) {
  command->add_option("--keys", options->keys, "a run's keys folder, for a tcp:// address");
}

void AddSource(CLI::App* command, const Shared& options, const char* help) {
  command->add_option("--source", options->source, help)->check(CLI::IsMember({"real", "generated"}));
}

void AddFilter(CLI::App* command, const Shared& options) {
  command->add_option("--run", options->run, "only records of this run");
  AddSource(command, options, "only real or only generated records");
  options->has_min_return =
      command->add_option("--min-return", options->min_return, "lowest return")->default_str("")->check(kFinite);
  options->has_max_return =
      command->add_option("--max-return", options->max_return, "highest return")->default_str("")->check(kFinite);
  command->add_option("--version", options->version, "policy version: A..B, A.., ..B or A")->check(kRange);
  command->add_option("--depth", options->depth, "generation depth (0: real data): A..B, A.., ..B or A")->check(kRange);
  command->add_option("--tokens", options->tokens, "length in tokens: A..B, A.., ..B or A")->check(kRange);
  command->add_option("--verdict", options->verdict, "only paths of this verdict")
      ->check(CLI::IsMember({"verified", "hinted", "unverified", "failed"}));
  options->has_guideline =
      command->add_option("--guideline", options->guideline, "only chains of this guideline (0: of none)")
          ->default_str("");
  command->add_option("--tag", options->tags, "only records with this tag (repeat: all of them)")
      ->allow_extra_args(false);
  command->add_option("--without-tag", options->without_tags, "no records with this tag")->allow_extra_args(false);
  command->add_option("--task", options->task, "only records of this task");
  command->add_option(
      "--prompt", options->prompt,
      "only records with exactly this prompt: the messages before the first answer, one under the other");
  command->add_option("--prompt-contains", options->prompt_contains, "text that the prompt must contain");
}

void AddOutput(CLI::App* command, const Shared& options, const std::string& fallback,
               const std::vector<std::string>& choices) {
  options->output = fallback;
  command->add_option("-o,--output", options->output, "output format")
      ->capture_default_str()
      ->check(CLI::IsMember(choices));
}

std::pair<CLI::App*, Shared> Add(CommandSet& commands, CLI::App* replay, const char* name, const char* help,
                                 Result<int> (*body)(const ReplayOptions&)) {
  auto options = std::make_shared<ReplayOptions>();
  CLI::App* command = replay->add_subcommand(name, help);
  commands.SetBody(command, [options, body] { return body(*options); });
  return {command, options};
}

void AddImport(CommandSet& commands, CLI::App* replay) {
  auto [command, options] =
      Add(commands, replay, "import", "read trajectories from JSON Lines, or files of questions", Import);
  AddStore(command, options);
  AddKeys(command, options);
  command
      ->add_option("--input", options->input,
                   "JSON Lines file, or a file of questions as it is published; -: standard input")
      ->required();
  command->add_option(
      "--format", options->format,
      "auto, quern, messages, prompt-completion, lmrl; questions: plain, gsm8k, svamp, aqua, strategyqa, "
      "arc, sums, game24");
  AddSource(command, options, "real or generated, set on every row");
  command->add_option("--tag", options->tags, "tag added to every row (may be repeated)")->allow_extra_args(false);
  command->add_option("--run", options->run, "run of rows that name none");
  command->add_flag("--skip-bad", options->skip_bad, "exit 0 although some lines are bad");
  AddOutput(command, options, "text", {"text", "json"});
}

void AddLooking(CommandSet& commands, CLI::App* replay) {
  const auto add = [&](const char* name, const char* help, Result<int> (*body)(const ReplayOptions&)) {
    auto [command, options] = Add(commands, replay, name, help, body);
    AddStore(command, options);
    AddKeys(command, options);
    AddFilter(command, options);
    return std::pair(command, options);
  };
  {
    auto [command, options] = add("query", "print matching records", Query);
    command->add_option("--limit", options->limit, "at most this many (0: all)");
    command->add_flag("--count", options->count, "print only how many match");
    AddOutput(command, options, "table", {"table", "jsonl", "numbers"});
  }
  {
    auto [command, options] = add("sample", "print what a training step would draw", Sample);
    command->add_option("--watermark", options->watermark, "only records up to this number (0: the newest)");
    command->add_option("--seed", options->seed, "of the draws");
    command->add_option("--step", options->step, "from 0");
    command->add_option("--count", options->batch, "records of a step")->check(CLI::Range(1, 65536));
    command
        ->add_option("--selector", options->selector,
                     "in what order: passes over all; by return; each once, oldest first")
        ->check(CLI::IsMember({"uniform", "prioritised", "fifo"}));
    command->add_option("--priority-exponent", options->priority_exponent, "prioritised: probability ~ rank ^ -this")
        ->check(CLI::Range(0.0, 16.0));
    command->add_option("--top-fraction", options->top_fraction, "only this part of them, by return")
        ->check(CLI::Range(0.0, 1.0));
    command->add_option("--window", options->window, "only the newest so many (0: all)");
    AddOutput(command, options, "table", {"table", "jsonl", "numbers"});
  }
  {
    auto [command, options] = add("export", "write matching records to a JSON Lines file", Export);
    command->add_option("--to", options->to, "file to write; -: standard output")->required();
    options->format = "quern";
    command->add_option("--format", options->format, "quern: import gives equal records; messages: the texts")
        ->capture_default_str()
        ->check(CLI::IsMember({"quern", "messages"}));
    AddOutput(command, options, "text", {"text", "json"});
  }
  {
    auto [command, options] = add("stats", "counts and sizes, by return, run, version, depth and tag", Stats);
    AddOutput(command, options, "text", {"text", "json"});
  }
}

void AddMaintenance(CommandSet& commands, CLI::App* replay) {
  const auto add = [&](const char* name, const char* help, Result<int> (*body)(const ReplayOptions&)) {
    auto [command, options] = Add(commands, replay, name, help, body);
    AddOutput(command, options, "text", {"text", "json"});
    return std::pair(command, options);
  };
  {
    auto [command, options] = add("verify", "read everything and check it, also while a job uses it", VerifyStore);
    AddStore(command, options);
    AddKeys(command, options);
  }
  {
    auto [command, options] = add("compact", "let the store tidy its files", CompactStore);
    AddStore(command, options);
  }
  {
    auto [command, options] = add("prune", "throw away the oldest generated records", PruneStore);
    AddStore(command, options);
    command->add_option("--max-bytes", options->max_bytes, "what all records together may have: 10GiB, 500MB, bytes");
    command->add_option("--max-age", options->max_age, "older records go: 90s, 15m, 12h, 7d");
    command->add_option("--keep-tag", options->keep_tags, "records with this tag stay (may be repeated)")
        ->allow_extra_args(false);
    command->add_flag("--real", options->real_too, "real data as well");
    command->add_flag("--dry-run", options->dry_run, "only say what would go");
  }
  {
    auto [command, options] = add("backup", "copy a store, also while a job uses it", BackupStore);
    AddStore(command, options);
    AddKeys(command, options);
    command->add_option("--to", options->to, "new directory; on the same disk it shares the store's files")->required();
  }
  {
    auto [command, options] = add("restore", "check a backup and copy it to where it is to be used", RestoreStore);
    command->add_option("--from", options->from, "backup directory")->required();
    command->add_option("--to", options->to, "new directory")->required();
  }
}

}  // namespace

void AddReplayCommand(CommandSet& commands) {
  CLI::App* replay = commands.app().add_subcommand("replay", "look into, fill and copy replay stores");
  replay->require_subcommand(1);
  AddImport(commands, replay);
  AddLooking(commands, replay);
  AddMaintenance(commands, replay);
}

}  // namespace quern
