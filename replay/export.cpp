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

void AppendTokens(ObjectWriter& row, std::string* out, const v1::Trajectory& t) {
  if (t.token_ids().empty()) return;
  row.Array("token_ids", t.token_ids().size() / 4,
            [&](size_t i) { *out += std::to_string(ElementAt<int32_t>(t.token_ids(), i)); });
  row.Array("loss_mask", t.loss_mask().size(), [&](size_t i) { *out += t.loss_mask()[i] != 0 ? '1' : '0'; });
  if (!t.log_probs().empty())
    row.Array("log_probs", t.log_probs().size() / 4,
              [&](size_t i) { AppendFloat(out, ElementAt<float>(t.log_probs(), i)); });
}

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
  object.Close();
}

}  // namespace

std::string FormatRow(const v1::Trajectory& t) {
  std::string out;
  ObjectWriter row(&out);
  row.Text("uid", t.uid());
  row.Text("run", t.run());
  row.Text("task", t.task());
  row.Text("source", t.source() == v1::SOURCE_REAL ? "real" : "generated");
  row.Unsigned("generation_depth", t.generation_depth());
  AppendNumber(row.Key("episode_return"), t.episode_return(), 17);
  row.Bool("done", t.done());
  row.Bool("success", t.success());
  row.Array("tags", static_cast<size_t>(t.tags_size()),
            [&](size_t i) { AppendText(&out, t.tags(static_cast<int>(i))); });
  row.Array("rewards", static_cast<size_t>(t.turns_size()),
            [&](size_t i) { AppendFloat(&out, t.turns(static_cast<int>(i)).reward()); });
  row.Array("turns", static_cast<size_t>(t.turns_size()), [&](size_t i) {
    const v1::Turn& turn = t.turns(static_cast<int>(i));
    ObjectWriter object(&out);
    object.Unsigned("begin", turn.begin());
    object.Unsigned("end", turn.end());
    object.Float("reward", turn.reward());
    object.Unsigned("policy", turn.policy());
    object.Close();
  });
  if (t.messages_size() > 0)
    row.Array("messages", static_cast<size_t>(t.messages_size()), [&](size_t i) {
      ObjectWriter object(&out);
      object.Text("role", t.messages(static_cast<int>(i)).role());
      object.Text("content", t.messages(static_cast<int>(i)).content());
      object.Close();
    });
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
  if (!t.extra_json().empty()) row.Text("extra_json", t.extra_json());
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

Result<uint64_t> ExportJsonl(Replay& store, const v1::Filter& filter, const std::string& path) {
  uint64_t rows = 0;
  QUERN_RETURN_IF_ERROR(WriteFileAtomic(path, [&](const WriteSink& sink) {
    return ForEachRecord(store, filter, 0, [&](uint64_t, const v1::Trajectory& trajectory) {
      ++rows;
      const std::string line = FormatRow(trajectory) + "\n";
      return sink(line.data(), line.size());
    });
  }));
  return rows;
}

}  // namespace quern
