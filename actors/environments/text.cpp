#include "actors/environments/text.h"

#include <set>
#include <string_view>
#include <utility>

#include "actors/environments/factories.h"
#include "actors/environments/options.h"
#include "base/check.h"
#include "base/file.h"
#include "base/random.h"
#include "base/strings.h"

namespace quern {

std::string Assignments(int characters, uint64_t seed) {
  constexpr int kVariables = 12;
  Random random(seed, kTaskStream);
  std::string values(kVariables, ' '), text;
  while (static_cast<int>(text.size()) < characters) {
    const auto variable = static_cast<size_t>(random.Below(kVariables));
    const bool asks = values[variable] != ' ' && random.Below(2) == 0;
    if (!asks) values[variable] = static_cast<char>('0' + random.Below(10));
    text += {static_cast<char>('a' + variable), asks ? '?' : '=', values[variable], '\n'};
  }
  return text;
}

namespace {

constexpr char kStart[] = "\x02";
constexpr int kMadeUp = 1 << 20;  // characters

struct Pieces {
  std::string text;
  // Where each character of the text begins, and its end: no piece begins or ends within one.
  std::vector<size_t> starts;
  size_t length = 0;   // of a piece, in characters
  size_t heldout = 0;  // first character of the held-out part

  size_t count() const { return starts.size() - 1; }
  std::string_view Characters(size_t begin, size_t n) const {
    return std::string_view(text).substr(starts[begin], starts[begin + n] - starts[begin]);
  }
};

class TextEnvironment : public Environment {
 public:
  explicit TextEnvironment(int length) : length_(length) {}

  Observation Reset(uint64_t) override {
    open_ = true;
    return {kStart};
  }
  StepOutcome Step(const std::string&) override {
    QUERN_CHECK(open_, "Step on an episode that is over or was never reset");
    open_ = false;
    return {.text = "", .reward = 0, .done = true, .success = true};
  }
  std::string action_end() const override { return ""; }
  int max_action_tokens() const override { return length_; }
  int max_turns() const override { return 1; }
  double min_return() const override { return 0; }
  double max_return() const override { return 1; }
  std::string task_id() const override { return "text"; }

 private:
  int length_;
  bool open_ = false;
};

class TextPlayer : public Player {
 public:
  TextPlayer(std::shared_ptr<const Pieces> pieces, bool heldout) : pieces_(std::move(pieces)), heldout_(heldout) {}
  void Reset(uint64_t seed, const Observation&) override {
    const Pieces& p = *pieces_;
    const size_t first = heldout_ ? p.heldout : 0, end = heldout_ ? p.count() : p.heldout;
    begin_ = first + Random(seed, kPlayerStream).Below(end - first - p.length + 1);
  }
  std::string Act() override { return std::string(pieces_->Characters(begin_, pieces_->length)); }
  void Observe(const StepOutcome&) override {}

 private:
  std::shared_ptr<const Pieces> pieces_;
  bool heldout_;
  size_t begin_ = 0;
};

class TextFactory : public EnvironmentFactory {
 public:
  explicit TextFactory(std::shared_ptr<const Pieces> pieces) : pieces_(std::move(pieces)) {}
  std::unique_ptr<Environment> NewEnvironment() const override {
    return std::make_unique<TextEnvironment>(static_cast<int>(pieces_->length));
  }
  std::vector<std::string> player_names() const override { return {"writer"}; }
  size_t task_count() const override { return 1; }
  Result<std::unique_ptr<Player>> NewPlayer(const std::string& name, const Options& options) const override {
    if (name != "writer") return UnknownName("player of text", name, player_names());
    OptionReader reader(StrCat("player ", name, " of text"), options);
    const bool heldout = reader.Choice("part", {"train", "heldout"}) == "heldout";
    QUERN_RETURN_IF_ERROR(reader.Finish());
    return std::unique_ptr<Player>(std::make_unique<TextPlayer>(pieces_, heldout));
  }
  std::vector<std::string> vocabulary() const override {
    std::set<std::string_view> all = {kStart};
    for (size_t i = 0; i < pieces_->count(); ++i) all.insert(pieces_->Characters(i, 1));
    return {all.begin(), all.end()};
  }

 private:
  std::shared_ptr<const Pieces> pieces_;
};

// Bytes of the UTF-8 sequence that starts with `byte`; of what starts none, one.
size_t SequenceBytes(char byte) {
  const auto b = static_cast<unsigned char>(byte);
  return b >= 0xf0 ? 4 : b >= 0xe0 ? 3 : b >= 0xc0 ? 2 : 1;
}

}  // namespace

FactoryResult MakeTextFactory(const Options& options, const std::string& base_dir) {
  OptionReader reader("environment text", options);
  const std::string file = reader.Text("file", "");
  const int length = reader.Integer("length", 256, 1, 1 << 20);
  const double heldout = reader.Number("heldout", 0.1, 0.001, 0.9);
  QUERN_RETURN_IF_ERROR(reader.Finish());
  auto pieces = std::make_shared<Pieces>();
  std::string& text = pieces->text;
  if (file.empty()) {
    text = Assignments(kMadeUp, 0);
  } else {
    QUERN_ASSIGN_OR_RETURN(text, ReadFile(ResolvePath(base_dir, file)));
  }
  for (size_t i = 0; i < text.size(); i += SequenceBytes(text[i])) pieces->starts.push_back(i);
  pieces->starts.push_back(text.size());
  pieces->starts.shrink_to_fit();
  const size_t count = pieces->count();
  pieces->length = static_cast<size_t>(length);
  pieces->heldout = count - static_cast<size_t>(heldout * static_cast<double>(count));
  if (pieces->heldout < pieces->length || count - pieces->heldout < pieces->length)
    return InvalidArgument(StrCat("environment text: ", file, " has ", count,
                                  " characters, too few for pieces of length ", length, " from both of its parts"));
  return FactoryResult(std::make_shared<TextFactory>(std::move(pieces)));
}

}  // namespace quern
