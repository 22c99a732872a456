#include "service/page.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/deadline.h"
#include "base/file.h"
#include "base/strings.h"
#include "replay/import.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kMostWaiting = 64;
constexpr auto kStoreDeadline = std::chrono::seconds(10);
constexpr size_t kMostText = 20000;      // bytes of one message
constexpr size_t kMostEvents = 500;      // of one answer
constexpr uint32_t kScanned = 256;       // records a query of the store
constexpr uint32_t kMostScanned = 4096;  // records of one search by text; the next page goes on
constexpr char kJsonType[] = "application/json";

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

Json NumbersJson(const std::map<std::string, double>& numbers) {
  Json json = Json::object();
  for (const auto& [name, value] : numbers) {
    json[name] = nullptr;
    if (std::isfinite(value)) json[name] = value;
  }
  return json;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string Decoded(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && HexDigit(text[i + 1]) >= 0 && HexDigit(text[i + 2]) >= 0) {
      out += static_cast<char>(HexDigit(text[i + 1]) * 16 + HexDigit(text[i + 2]));
      i += 2;
    } else {
      out += text[i] == '+' ? ' ' : text[i];
    }
  }
  return out;
}

std::map<std::string, std::string> ParseQuery(const std::string& query) {
  std::map<std::string, std::string> parameters;
  for (const std::string& part : StrSplit(query, '&')) {
    const size_t equals = part.find('=');
    if (equals == std::string::npos) continue;
    parameters[Decoded(part.substr(0, equals))] = Decoded(part.substr(equals + 1));
  }
  return parameters;
}

// Empty where the parameter is not given.
Result<std::optional<double>> NumberOf(const std::map<std::string, std::string>& parameters, const std::string& name) {
  const auto it = parameters.find(name);
  if (it == parameters.end() || it->second.empty()) return std::optional<double>();
  char* end = nullptr;
  const double value = std::strtod(it->second.c_str(), &end);
  if (end == it->second.c_str() || *end != '\0' || !std::isfinite(value))
    return InvalidArgument(name + ": '" + it->second + "' is not a number");
  return std::optional<double>(value);
}

Result<uint64_t> CountOf(const std::map<std::string, std::string>& parameters, const std::string& name,
                         uint64_t otherwise, uint64_t most) {
  QUERN_ASSIGN_OR_RETURN(const std::optional<double> value, NumberOf(parameters, name));
  if (!value) return otherwise;
  if (*value < 0 || *value != std::floor(*value)) return InvalidArgument(name + " must be a whole number from 0");
  return std::min(most, static_cast<uint64_t>(std::min(*value, 9e15)));
}

std::string TextOf(const std::map<std::string, std::string>& parameters, const std::string& name) {
  const auto it = parameters.find(name);
  return it == parameters.end() ? std::string() : it->second;
}

const char* KindName(PlannedStage::Kind kind) {
  switch (kind) {
    case PlannedStage::Kind::kImport: return "import";
    case PlannedStage::Kind::kRollout: return "play";
    case PlannedStage::Kind::kTrain: return "train";
    case PlannedStage::Kind::kScore: return "score";
  }
  return "";
}

std::string Shortened(const std::string& text) {
  if (text.size() <= kMostText) return text;
  size_t end = kMostText;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + StrCat(" [... ", text.size() - end, " more bytes]");
}

bool Contains(const v1::Trajectory& trajectory, const std::string& text) {
  return std::any_of(trajectory.messages().begin(), trajectory.messages().end(),
                     [&](const v1::Message& message) { return message.content().find(text) != std::string::npos; });
}

Json SampleJson(uint64_t number, const v1::Trajectory& t) {
  Json json = {{"number", number}, {"uid", t.uid()}, {"task", t.task()}, {"return", nullptr}};
  if (std::isfinite(t.episode_return())) json["return"] = t.episode_return();
  json["success"] = t.success();
  json["done"] = t.done();
  json["source"] = t.source() == v1::SOURCE_REAL ? "real" : "generated";
  json["depth"] = t.generation_depth();
  json["tokens"] = t.loss_mask().size();
  json["time"] = 1e-3 * static_cast<double>(t.created_unix_ms());
  json["tags"] = t.tags();
  json["messages"] = Json::array();
  for (const v1::Message& message : t.messages())
    json["messages"].push_back({{"role", message.role()}, {"content", Shortened(message.content())}});
  json["rewards"] = Json::array();
  for (const v1::Turn& turn : t.turns()) json["rewards"].push_back(turn.reward());
  json["policies"] = Json::array();
  for (const v1::PolicyVersion& policy : t.policies())
    json["policies"].push_back({{"name", policy.name()}, {"version", policy.version()}});
  if (t.verdict() != v1::VERDICT_UNSPECIFIED) json["verdict"] = VerdictName(t.verdict());
  if (t.has_chain()) {
    Json& chain = json["chain"] = {{"answer", t.chain().answer()},
                                   {"extracted", t.chain().extracted()},
                                   {"guideline", t.chain().guideline()},
                                   {"guideline_text", Shortened(t.chain().guideline_text())},
                                   {"hinted", t.chain().hinted()},
                                   {"rejected", t.chain().rejected()},
                                   {"stages", Json::array()}};
    for (const v1::ChainStage& stage : t.chain().stages())
      chain["stages"].push_back({{"name", stage.name()}, {"text", Shortened(stage.text())}});
  }
  return json;
}

Json RowJson(const ResultRow& row) {
  Json json = {{"policy", row.policy},           {"label", row.label},         {"episodes", row.episodes},
               {"mean_return", row.mean_return}, {"std_error", row.std_error}, {"success_rate", row.success_rate}};
  if (!row.set.empty()) json["set"] = row.set;
  if (!row.arm.empty()) json["arm"] = row.arm;
  if (row.round > 0) json["round"] = row.round;
  return json;
}

int HttpStatus(const Status& status) {
  switch (status.code()) {
    case StatusCode::kInvalidArgument: return 400;
    case StatusCode::kNotFound: return 404;
    case StatusCode::kUnavailable:
    case StatusCode::kDeadlineExceeded: return 503;
    default: return 500;
  }
}

}  // namespace

RunPage::RunPage(const Run& run, std::unique_ptr<Replay> store)
    : run_(run), plan_(MakePlan(run.job)), store_(std::move(store)), history_(run_) {
  worker_ = std::thread([this] { Work(); });
}

RunPage::~RunPage() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  worker_.join();
}

void RunPage::ShowLive(std::function<v1::StatusReply()> status) {
  std::lock_guard lock(live_mutex_);
  live_ = std::move(status);
}

void RunPage::Handle(HttpRequest request, std::shared_ptr<HttpReply> reply) {
  if (request.path == "/") return reply->Send(200, "text/html; charset=utf-8", std::string(PageHtml()));
  if (!request.path.starts_with("/api/"))
    return reply->Send(404, kJsonType, HttpErrorJson(404, "nothing is here; the page is at /"));
  std::lock_guard lock(mutex_);
  if (waiting_.size() >= kMostWaiting)
    return reply->Send(503, kJsonType, HttpErrorJson(503, "too many requests wait; try again"));
  waiting_.push_back({std::move(request), std::move(reply)});
  wake_.notify_one();
}

void RunPage::Work() {
  while (true) {
    Waiting next;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (stopping_) return;
      next = std::move(waiting_.front());
      waiting_.pop_front();
    }
    if (next.reply->closed()) continue;
    const Result<std::string> answer = Answer(next.request.path, ParseQuery(next.request.query));
    if (answer.ok()) {
      next.reply->Send(200, kJsonType, *answer);
    } else {
      const int status = HttpStatus(answer.status());
      next.reply->Send(status, kJsonType, HttpErrorJson(status, answer.status().message()));
    }
  }
}

Result<std::string> RunPage::Answer(const std::string& path, const Parameters& parameters) {
  history_.Refresh();
  if (path == "/api/run") return RunJson();
  if (path == "/api/curves") return CurvesJson(parameters);
  if (path == "/api/returns") return ReturnsJson();
  if (path == "/api/replay") return ReplayJson();
  if (path == "/api/samples") return SamplesJson(parameters);
  if (path == "/api/events") return EventsJson();
  if (path == "/api/job") return JobToJson(run_.job);
  return NotFound("there are /api/run, curves, returns, replay, samples, events and job");
}

std::string RunPage::RunJson() {
  std::optional<v1::StatusReply> live;
  {
    std::lock_guard lock(live_mutex_);
    if (live_) live = live_();
  }
  const Json result = Json::parse(history_.result_json(), nullptr, false);
  std::string state = result.is_object() ? result.value("state", "") : history_.ended();
  std::string error = result.is_object() ? result.value("error", "") : history_.error();
  if (live) {
    state = live->state();
    error = live->error();
  }
  if (state.empty()) state = history_.begin() == 0 ? "not started" : "interrupted";
  const bool running = live && state == "running";
  const Job& job = run_.job;
  double seconds = history_.begin() == 0 ? 0 : (running ? UnixSeconds() : history_.last()) - history_.begin();
  if (!running && result.is_object()) seconds = result.value("seconds", seconds);
  Json json = {{"job", job.name},
               {"run", run_.name()},
               {"directory", run_.directory},
               {"state", state},
               {"error", error},
               {"live", live.has_value()},
               {"method", job.method},
               {"environment", job.environment},
               {"model", job.model_name_or_path.empty() ? "self-made" : job.model_name_or_path},
               {"seed", job.seed},
               {"actors", job.actors},
               {"begin", history_.begin()},
               {"seconds", seconds},
               {"attempts", history_.attempts()},
               {"stages", Json::array()},
               {"members", Json::array()}};
  std::map<std::string, const v1::StageStatus*> statuses;
  if (live)
    for (const v1::StageStatus& status : live->stages()) statuses[status.name()] = &status;
  static const RunHistory::Stage kNothing;
  for (const PlannedStage& planned : plan_.stages) {
    const auto found = history_.stages().find(planned.name);
    const RunHistory::Stage& past = found == history_.stages().end() ? kNothing : found->second;
    const bool learner = planned.kind == PlannedStage::Kind::kTrain || planned.kind == PlannedStage::Kind::kScore;
    uint64_t total = planned.kind == PlannedStage::Kind::kTrain     ? planned.steps
                     : planned.kind == PlannedStage::Kind::kRollout ? planned.episodes
                     : planned.kind == PlannedStage::Kind::kScore   ? 1
                                                                    : planned.files.size();
    uint64_t done = planned.kind == PlannedStage::Kind::kTrain ? past.last_step : past.episodes_done;
    std::string stage_state = "pending";
    if (past.started && (!learner || past.given)) stage_state = "interrupted";
    if (past.done) stage_state = "done";
    std::string detail = past.detail;
    if (const auto status = statuses.find(planned.name); status != statuses.end()) {
      stage_state = status->second->state();
      done = std::max(done, status->second->done());
      total = status->second->total();
      detail = status->second->detail();
    }
    if (stage_state == "done") done = total;
    Json stage = {{"name", planned.name}, {"kind", KindName(planned.kind)},
                  {"state", stage_state}, {"done", std::min(done, total)},
                  {"total", total},       {"detail", detail}};
    if (past.begin > 0 && stage_state != "pending") {
      stage["begin"] = past.begin;
      stage["end"] = past.done ? past.end : stage_state == "running" ? UnixSeconds() : history_.last();
    }
    stage["metrics"] = NumbersJson(past.metrics);
    json["stages"].push_back(std::move(stage));
  }
  if (live) {
    for (const v1::Member& member : live->members()) {
      json["members"].push_back({{"role", member.role()},
                                 {"index", member.index()},
                                 {"pid", member.pid()},
                                 {"activity", member.activity()},
                                 {"heartbeat_age_seconds", member.heartbeat_age_seconds()},
                                 {"gauges", NumbersJson({member.gauges().begin(), member.gauges().end()})}});
    }
  }
  for (const char* key : {"table", "requirements"})
    if (result.is_object() && result.contains(key)) json[key] = result[key];
  return Dump(json);
}

// At most `points` of each stage, evenly, the last one always.
std::string RunPage::CurvesJson(const Parameters& parameters) {
  const Result<uint64_t> asked = CountOf(parameters, "points", 400, 5000);
  const size_t points = std::max<size_t>(2, asked.ok() ? *asked : 400);
  Json json = {{"stages", Json::array()}};
  for (const auto& [name, curve] : history_.curves()) {
    std::vector<size_t> kept;
    const size_t size = curve.steps.size();
    const size_t stride = (size + points - 1) / points;
    for (size_t i = 0; i < size; i += stride) kept.push_back(i);
    if (!kept.empty() && kept.back() != size - 1) kept.push_back(size - 1);
    Json stage = {{"stage", name},
                  {"logged", size},
                  {"steps", Json::array()},
                  {"seconds", Json::array()},
                  {"numbers", Json::object()}};
    for (const size_t i : kept) {
      stage["steps"].push_back(curve.steps[i]);
      const double since = curve.times[i] - history_.begin();
      stage["seconds"].push_back(std::isfinite(since) ? Json(std::round(1e3 * since) / 1e3) : Json(nullptr));
    }
    for (const auto& [number, values] : curve.numbers) {
      Json& list = stage["numbers"][number] = Json::array();
      bool any = false;
      for (const size_t i : kept) {
        any = any || std::isfinite(values[i]);
        list.push_back(std::isfinite(values[i]) ? Json(values[i]) : Json(nullptr));
      }
      // Numbers that are logged seldom would be lost between the kept points.
      if (any) continue;
      stage["numbers"].erase(number);
    }
    json["stages"].push_back(std::move(stage));
  }
  return Dump(json);
}

// Whether everything that writes records with this tag is done.
bool RunPage::AllDone(const std::string& tag, bool* any_begun) {
  bool all = true;
  *any_begun = false;
  for (const PlannedStage& stage : plan_.stages) {
    if (std::find(stage.tags.begin(), stage.tags.end(), tag) == stage.tags.end()) continue;
    const auto found = history_.stages().find(stage.name);
    const bool begun = found != history_.stages().end() && found->second.started;
    *any_begun = *any_begun || begun;
    all = all && begun && found->second.done;
  }
  return all;
}

// Rows of the final table as far as they can be measured, and the stages that played in between.
std::string RunPage::ReturnsJson() {
  std::vector<PlannedRow> rows;
  for (const PlannedRow& row : plan_.rows)
    if (!row.tag.empty()) rows.push_back(row);
  const size_t final_rows = rows.size();
  for (const PlannedStage& stage : plan_.stages) {
    if (stage.kind != PlannedStage::Kind::kRollout || stage.evaluation || !stage.player.empty()) continue;
    if (std::find(stage.tags.begin(), stage.tags.end(), stage.name) == stage.tags.end()) continue;
    PlannedRow& row = rows.emplace_back();
    row.policy = stage.policy;
    row.label = stage.name;
    row.tag = stage.name;
    row.arm = stage.arm;
  }
  Json json = {{"policies", Json::array()}, {"rounds", Json::array()}};
  for (size_t i = 0; i < rows.size(); ++i) {
    bool begun = false;
    const bool done = AllDone(rows[i].tag, &begun);
    if (!begun || store_ == nullptr) continue;
    ResultRow measured;
    if (const auto known = final_rows_.find(rows[i].tag); known != final_rows_.end()) {
      measured = known->second;
    } else {
      const Result<ResultRow> row = MeasureTag(*store_, rows[i], Deadline::After(kStoreDeadline));
      if (!row.ok()) {
        json["error"] = row.status().message();
        break;
      }
      measured = *row;
      if (done) final_rows_[rows[i].tag] = measured;
    }
    if (measured.episodes == 0) continue;
    Json entry = RowJson(measured);
    entry["label"] = rows[i].label;
    entry["done"] = done;
    json[i < final_rows ? "policies" : "rounds"].push_back(std::move(entry));
  }
  return Dump(json);
}

Result<std::string> RunPage::ReplayJson() {
  if (store_ == nullptr) return NotFound("the run has no replay store that can be read");
  QUERN_ASSIGN_OR_RETURN(const v1::StatsReply stats,
                         store_->Stats(v1::StatsRequest(), Deadline::After(kStoreDeadline)));
  Json json = {{"records", stats.records()},
               {"tokens", stats.tokens()},
               {"bytes", stats.bytes()},
               {"watermark", stats.watermark()},
               {"real", stats.real()},
               {"generated", stats.generated()},
               {"duplicates", stats.duplicates()},
               {"mean_return", stats.mean_return()},
               {"min_return", stats.min_return()},
               {"max_return", stats.max_return()},
               {"success_rate", stats.success_rate()},
               {"tags", Json::array()}};
  for (const v1::TagCount& tag : stats.tags()) json["tags"].push_back({{"tag", tag.tag()}, {"records", tag.records()}});
  if (const Result<uint64_t> free = DiskFreeBytes(run_.directory); free.ok()) json["disk_free_bytes"] = *free;
  return Dump(json);
}

Result<std::string> RunPage::SamplesJson(const Parameters& parameters) {
  if (store_ == nullptr) return NotFound("the run has no replay store that can be read");
  QUERN_ASSIGN_OR_RETURN(const uint64_t limit, CountOf(parameters, "limit", 20, 100));
  QUERN_ASSIGN_OR_RETURN(const uint64_t before, CountOf(parameters, "before", 0, ~uint64_t{0}));
  v1::QueryRequest request;
  request.set_newest_first(true);
  request.set_after(before);
  v1::Filter& filter = *request.mutable_filter();
  const std::string source = TextOf(parameters, "source");
  if (source == "real" || source == "generated")
    filter.set_source(source == "real" ? v1::SOURCE_REAL : v1::SOURCE_GENERATED);
  else if (!source.empty())
    return InvalidArgument("source: '" + source + "' is neither real nor generated");
  if (const std::string tag = TextOf(parameters, "tag"); !tag.empty()) filter.add_tags(tag);
  if (const std::string verdict = TextOf(parameters, "verdict"); !verdict.empty()) {
    QUERN_ASSIGN_OR_RETURN(const v1::Verdict value, ParseVerdict(verdict));
    filter.set_verdict(value);
  }
  QUERN_ASSIGN_OR_RETURN(const std::optional<double> least, NumberOf(parameters, "min_return"));
  QUERN_ASSIGN_OR_RETURN(const std::optional<double> most, NumberOf(parameters, "max_return"));
  if (least) filter.set_min_return(*least);
  if (most) filter.set_max_return(*most);
  const std::string text = TextOf(parameters, "text");
  // Texts are looked through here, a piece at a time: the store goes on serving those who train.
  request.set_limit(text.empty() ? static_cast<uint32_t>(limit) : kScanned);
  Json json = {{"samples", Json::array()}};
  v1::Trajectory trajectory;
  uint64_t scanned = 0;
  uint64_t last = 0;
  bool more = limit > 0;
  while (more && json["samples"].size() < limit && scanned < kMostScanned) {
    QUERN_ASSIGN_OR_RETURN(const v1::QueryReply page, store_->Query(request, Deadline::After(kStoreDeadline)));
    more = page.more();
    for (int i = 0; i < page.trajectories_size(); ++i) {
      if (json["samples"].size() >= limit) {
        more = true;
        break;
      }
      last = page.numbers(i);
      ++scanned;
      if (!trajectory.ParseFromString(page.trajectories(i)))
        return DataLoss(StrCat("record ", last, " does not parse"));
      if (text.empty() || Contains(trajectory, text)) json["samples"].push_back(SampleJson(last, trajectory));
    }
    request.set_after(last);
  }
  json["scanned"] = scanned;
  // Where the next page begins; null: there is none.
  json["before"] = more && last > 1 ? Json(last) : Json(nullptr);
  return Dump(json);
}

std::string RunPage::EventsJson() {
  const std::vector<RunHistory::Event>& events = history_.events();
  Json json = {{"events", Json::array()}, {"total", events.size()}};
  for (size_t i = events.size(); i > 0 && events.size() - i < kMostEvents; --i) {
    const RunHistory::Event& event = events[i - 1];
    json["events"].push_back({{"time", event.time}, {"kind", event.kind}, {"text", event.text}});
  }
  return Dump(json);
}

}  // namespace quern
