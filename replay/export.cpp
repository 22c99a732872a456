#include <cmath>
#include <cstring>

#include "base/file.h"
#include "base/strings.h"
#include "replay/import.h"

namespace quern {

namespace {

constexpr auto kPageDeadline = std::chrono::seconds(60);

void AppendText(std::string* out, const std::string& text) {
  *out += '"';
  for (const char c : text) {
    switch (c) {
      case '"': *out += "\\\""; break;
      case '\\': *out += "\\\\"; break;
      case '\n': *out += "\\n"; break;
      case '\r': *out += "\\r"; break;
      case '\t': *out += "\\t"; break;
      default:
        if (static_cast<unsigned char>(c) < 0x20)
          *out += StrFormat("\\u%04x", static_cast<unsigned>(c));
        else
          *out += c;
    }
  }
  *out += '"';
}

// 9 digits name a float exactly, 17 a double. A negative zero keeps its sign only with a point.
void AppendNumber(std::string* out, double value, int digits) {
  if (std::isnan(value)) {
    *out += "null";
  } else if (value == 0 && std::signbit(value)) {
    *out += "-0.0";
  } else {
    char text[40];
    *out += std::string_view(text, static_cast<size_t>(snprintf(text, sizeof(text), "%.*g", digits, value)));
  }
}
void AppendFloat(std::string* out, float value) { AppendNumber(out, value, 9); }

// Writes `"name":` with a comma where one is needed.
class ObjectWriter {
 public:
  explicit ObjectWriter(std::string* out) : out_(out) { *out_ += '{'; }
  std::string* Key(const char* name) {
    if (!first_) *out_ += ',';
    first_ = false;
    *out_ += '"';
    *out_ += name;
    *out_ += "\":";
    return out_;
  }
  void Text(const char* name, const std::string& value) { AppendText(Key(name), value); }
  void Unsigned(const char* name, uint64_t value) { *Key(name) += std::to_string(value); }
  void Bool(const char* name, bool value) { *Key(name) += value ? "true" : "false"; }
  void Float(const char* name, float value) { AppendFloat(Key(name), value); }
  // append(i) writes element i.
  template <typename Append>
  void Array(const char* name, size_t size, Append append) {
    *Key(name) += '[';
    for (size_t i = 0; i < size; ++i) {
      if (i > 0) *out_ += ',';
      append(i);
    }
    *out_ += ']';
  }
  void Close() { *out_ += '}'; }

 private:
  std::string* out_;
  bool first_ = true;
};

template <typename T>
T ElementAt(const std::string& bytes, size_t index) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

void AppendInt32s(ObjectWriter& row, std::string* out, const char* name, const std::string& bytes) {
  if (bytes.empty()) return;
  row.Array(name, bytes.size() / 4, [&](size_t i) { *out += std::to_string(ElementAt<int32_t>(bytes, i)); });
}

void AppendFloats(ObjectWriter& row, std::string* out, const char* name, const std::string& bytes) {
  if (bytes.empty()) return;
  row.Array(name, bytes.size() / 4, [&](size_t i) { AppendFloat(out, ElementAt<float>(bytes, i)); });
}

void AppendTokens(ObjectWriter& row, std::string* out, const v1::Trajectory& t) {
  if (t.token_ids().empty()) return;
  AppendInt32s(row, out, "token_ids", t.token_ids());
  row.Array("loss_mask", t.loss_mask().size(), [&](size_t i) { *out += t.loss_mask()[i] != 0 ? '1' : '0'; });
  AppendFloats(row, out, "log_probs", t.log_probs());
}

void AppendTexts(ObjectWriter& row, std::string* out, const v1::Trajectory& t) {
  row.Array("messages", static_cast<size_t>(t.messages_size()), [&](size_t i) {
    ObjectWriter object(out);
    object.Text("role", t.messages(static_cast<int>(i)).role());
    object.Text("content", t.messages(static_cast<int>(i)).content());
    object.Close();
  });
}

void AppendRewards(ObjectWriter& row, std::string* out, const v1::Trajectory& t) {
  row.Array("rewards", static_cast<size_t>(t.turns_size()),
            [&](size_t i) { AppendFloat(out, t.turns(static_cast<int>(i)).reward()); });
}

void AppendTags(ObjectWriter& row, std::string* out, const v1::Trajectory& t) {
  row.Array("tags", static_cast<size_t>(t.tags_size()),
            [&](size_t i) { AppendText(out, t.tags(static_cast<int>(i))); });
}

const char* SourceName(const v1::Trajectory& t) { return t.source() == v1::SOURCE_REAL ? "real" : "generated"; }

void AppendSampling(ObjectWriter& row, std::string* out, const v1::SamplingParams& s) {
  row.Key("sampling");
  ObjectWriter object(out);
  object.Float("temperature", s.temperature());
  object.Unsigned("top_k", s.top_k());
  object.Float("top_p", s.top_p());
  object.Float("min_p", s.min_p());
  object.Float("repetition_penalty", s.repetition_penalty());
  object.Unsigned("seed", s.seed());
  object.Float("q_sft_beta", s.q_sft_beta());
  object.Text("rule", s.rule());
  if (s.has_compression()) {
    const v1::Compression& c = s.compression();
    object.Key("compression");
    ObjectWriter settings(out);
    settings.Array("budgets", static_cast<size_t>(c.budgets_size()),
                   [&](size_t i) { *out += std::to_string(c.budgets(static_cast<int>(i))); });
    settings.Unsigned("key_channels", c.key_channels());
    settings.Unsigned("query_window", c.query_window());
    settings.Unsigned("recent", c.recent());
    settings.Close();
  }
  object.Close();
}

void AppendChain(ObjectWriter& row, std::string* out, const v1::Chain& chain) {
  row.Key("chain");
  ObjectWriter object(out);
  object.Text("question", chain.question());
  object.Text("answer", chain.answer());
  object.Text("extracted", chain.extracted());
  object.Unsigned("guideline", chain.guideline());
  object.Text("guideline_text", chain.guideline_text());
  object.Bool("hinted", chain.hinted());
  object.Array("stages", static_cast<size_t>(chain.stages_size()), [&](size_t i) {
    const v1::ChainStage& stage = chain.stages(static_cast<int>(i));
    ObjectWriter one(out);
    one.Text("name", stage.name());
    one.Text("text", stage.text());
    AppendInt32s(one, out, "prompt_token_ids", stage.prompt_token_ids());
    AppendInt32s(one, out, "token_ids", stage.token_ids());
    AppendFloats(one, out, "log_probs", stage.log_probs());
    if (stage.has_sampling()) AppendSampling(one, out, stage.sampling());
    one.Close();
  });
  object.Text("rejected", chain.rejected());
  object.Close();
}

constexpr const char* kVerdicts[] = {"", "verified", "hinted", "unverified", "failed"};

}  // namespace

std::string VerdictName(v1::Verdict verdict) { return v1::Verdict_IsValid(verdict) ? kVerdicts[verdict] : ""; }

Result<v1::Verdict> ParseVerdict(const std::string& name) {
  for (int i = 1; i < static_cast<int>(std::size(kVerdicts)); ++i)
    if (name == kVerdicts[i]) return static_cast<v1::Verdict>(i);
  return InvalidArgument("'" + name + "' is none of verified, hinted, unverified, failed");
}

std::string FormatRow(const v1::Trajectory& t) {
  std::string out;
  ObjectWriter row(&out);
  row.Text("uid", t.uid());
  row.Text("run", t.run());
  row.Text("task", t.task());
  row.Text("source", SourceName(t));
  row.Unsigned("generation_depth", t.generation_depth());
  AppendNumber(row.Key("episode_return"), t.episode_return(), 17);
  if (t.log_prob_difference() != 0) row.Float("log_prob_difference", t.log_prob_difference());
  row.Bool("done", t.done());
  row.Bool("success", t.success());
  AppendTags(row, &out, t);
  AppendRewards(row, &out, t);
  row.Array("turns", static_cast<size_t>(t.turns_size()), [&](size_t i) {
    const v1::Turn& turn = t.turns(static_cast<int>(i));
    ObjectWriter object(&out);
    object.Unsigned("begin", turn.begin());
    object.Unsigned("end", turn.end());
    object.Float("reward", turn.reward());
    object.Unsigned("policy", turn.policy());
    object.Close();
  });
  if (t.messages_size() > 0) AppendTexts(row, &out, t);
  AppendTokens(row, &out, t);
  row.Array("policies", static_cast<size_t>(t.policies_size()), [&](size_t i) {
    const v1::PolicyVersion& policy = t.policies(static_cast<int>(i));
    ObjectWriter object(&out);
    object.Text("name", policy.name());
    object.Unsigned("version", policy.version());
    object.Text("content_hash", policy.content_hash());
    object.Close();
  });
  if (t.has_sampling()) AppendSampling(row, &out, t.sampling());
  row.Unsigned("episode_seed", t.episode_seed());
  *row.Key("created_unix_ms") += std::to_string(t.created_unix_ms());
  if (t.verdict() != v1::VERDICT_UNSPECIFIED) row.Text("verdict", VerdictName(t.verdict()));
  if (t.has_chain()) AppendChain(row, &out, t.chain());
  if (!t.extra_json().empty()) row.Text("extra_json", t.extra_json());
  row.Close();
  return out;
}

std::string FormatMessagesRow(const v1::Trajectory& t) {
  std::string out;
  ObjectWriter row(&out);
  AppendTexts(row, &out, t);
  AppendRewards(row, &out, t);
  AppendNumber(row.Key("reward"), t.episode_return(), 17);
  row.Bool("done", t.done());
  row.Bool("success", t.success());
  row.Text("task", t.task());
  row.Text("source", SourceName(t));
  row.Unsigned("generation_depth", t.generation_depth());
  if (t.verdict() != v1::VERDICT_UNSPECIFIED) row.Text("verdict", VerdictName(t.verdict()));
  if (t.has_chain()) {
    row.Unsigned("guideline", t.chain().guideline());
    row.Text("answer", t.chain().answer());
    row.Text("extracted", t.chain().extracted());
  }
  if (t.policies_size() > 0) {
    row.Text("policy", t.policies(0).name());
    row.Unsigned("version", t.policies(0).version());
  }
  AppendTags(row, &out, t);
  row.Text("run", t.run());
  row.Text("uid", t.uid());
  row.Close();
  return out;
}

Status ForEachRecord(Replay& store, const v1::Filter& filter, uint64_t limit,
                     const std::function<Status(uint64_t number, const v1::Trajectory& trajectory)>& visit) {
  v1::QueryRequest request;
  *request.mutable_filter() = filter;
  v1::Trajectory trajectory;
  uint64_t seen = 0;
  while (true) {
    const uint64_t left = limit == 0 ? 1000 : std::min<uint64_t>(limit - seen, 1000);
    request.set_limit(static_cast<uint32_t>(left));
    QUERN_ASSIGN_OR_RETURN(const v1::QueryReply page, store.Query(request, Deadline::After(kPageDeadline)));
    for (int i = 0; i < page.trajectories_size(); ++i) {
      if (!trajectory.ParseFromString(page.trajectories(i)))
        return DataLoss(StrCat("record ", page.numbers(i), " does not parse"));
      QUERN_RETURN_IF_ERROR(visit(page.numbers(i), trajectory));
    }
    seen += static_cast<uint64_t>(page.trajectories_size());
    if (!page.more() || page.numbers_size() == 0 || (limit != 0 && seen >= limit)) return {};
    request.set_after(page.numbers(page.numbers_size() - 1));
  }
}

Result<ExportReport> ExportJsonl(Replay& store, const v1::Filter& filter, const WriteSink& sink, ExportFormat format) {
  ExportReport report;
  QUERN_RETURN_IF_ERROR(ForEachRecord(store, filter, 0, [&](uint64_t, const v1::Trajectory& trajectory) {
    if (format == ExportFormat::kMessages && trajectory.messages_size() == 0) {
      ++report.without_messages;
      return Status();
    }
    ++report.rows;
    const std::string line =
        (format == ExportFormat::kMessages ? FormatMessagesRow(trajectory) : FormatRow(trajectory)) + "\n";
    return sink(line.data(), line.size());
  }));
  return report;
}

Result<ExportReport> ExportJsonl(Replay& store, const v1::Filter& filter, const std::string& path,
                                 ExportFormat format) {
  ExportReport report;
  QUERN_RETURN_IF_ERROR(WriteFileAtomic(path, [&](const WriteSink& sink) -> Status {
    QUERN_ASSIGN_OR_RETURN(report, ExportJsonl(store, filter, sink, format));
    return {};
  }));
  return report;
}

}  // namespace quern
