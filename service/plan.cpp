#include "service/plan.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "actors/chain_program.h"
#include "base/random.h"
#include "base/strings.h"
#include "learner/train_stage.h"

namespace quern {

namespace {

using Json = nlohmann::ordered_json;

// FNV-1a: equal names give equal seeds on every machine.
uint64_t NameHash(const std::string& name) {
  uint64_t hash = 1469598103934665603u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}

std::string Label(const std::string& policy) {
  static const std::map<std::string, std::string> labels = {
      {"sft", "SFT"},   {"filtered_sft", "filtered SFT"}, {"q_sft", "Q-SFT"},        {kBaseModel, "untrained model"},
      {"star", "STaR"}, {"majority", "majority vote"},    {"regenesis", "ReGenesis"}};
  constexpr std::string_view suffix = "_online";
  if (policy.ends_with(suffix))
    return Label(policy.substr(0, policy.size() - suffix.size())) + " after the online phase";
  const auto it = labels.find(policy);
  return it == labels.end() ? policy : it->second;
}

class Planner {
 public:
  explicit Planner(const Job& job) : job_(job) {}

  Plan Make() {
    for (const std::string& player : job_.evaluate.players) EvaluatePlayer(player);
    OfflineData();
    HeldoutData();
    if (!job_.collapse.real_records.empty()) {
      CollapseStudy();
    } else {
      if (!data_stages_.empty()) OfflineTraining();
      if (job_.online.rounds > 0) OnlineRounds();
      if (job_.method == "regenesis") ChainRounds();
    }
    CheckRollouts();
    OrderRows();
    return std::move(plan_);
  }

 private:
  bool Wants(const std::string& method) const {
    return job_.method == method || std::find(job_.compare.begin(), job_.compare.end(), method) != job_.compare.end();
  }

  PlannedStage& Add(PlannedStage::Kind kind, const std::string& name, std::vector<std::string> after) {
    PlannedStage& stage = plan_.stages.emplace_back();
    stage.kind = kind;
    stage.name = name;
    stage.after = std::move(after);
    stage.seed = MixSeed(job_.seed, NameHash(name));
    return stage;
  }

  void OfflineData() {
    if (!job_.import_files.empty()) {
      PlannedStage& stage = Add(PlannedStage::Kind::kImport, "import", {});
      stage.files = job_.import_files;
      stage.tags = {"offline"};
      data_stages_.push_back(stage.name);
    }
    std::map<std::string, int> seen;
    for (const CollectSection& collect : job_.collect) {
      const int repeat = ++seen[collect.player];
      std::string name = "collect:" + collect.player;
      if (repeat > 1) name += StrCat("-", repeat);
      PlannedStage& stage = Add(PlannedStage::Kind::kRollout, name, {});
      stage.policy = "player:" + collect.player;
      stage.player = collect.player;
      stage.player_options = collect.options;
      stage.episodes = static_cast<uint64_t>(collect.episodes);
      stage.tags = {"offline", stage.policy};
      data_stages_.push_back(name);
    }
    if (!data_stages_.empty()) AddRow("data", "data mean", "offline");
  }

  // Everything that trains waits for these as well: probes and checks use them.
  void HeldoutData() {
    if (!job_.heldout_files.empty()) {
      PlannedStage& stage = Add(PlannedStage::Kind::kImport, "heldout-import", {});
      stage.files = job_.heldout_files;
      stage.tags = {kHeldoutTag};
      heldout_stages_.push_back(stage.name);
    }
    for (size_t i = 0; i < job_.heldout.size(); ++i) {
      const CollectSection& collect = job_.heldout[i];
      const std::string name = i == 0 ? "heldout" : StrCat("heldout-", i + 1);
      PlannedStage& stage = Add(PlannedStage::Kind::kRollout, name, {});
      stage.policy = "player:" + collect.player;
      stage.player = collect.player;
      stage.player_options = collect.options;
      stage.episodes = static_cast<uint64_t>(collect.episodes);
      stage.tags = {kHeldoutTag, stage.policy};
      heldout_stages_.push_back(name);
    }
  }

  // The row's loss on the held-out records, under one model's weights.
  void Score(PlannedRow& row, const std::string& weights) {
    if (heldout_stages_.empty()) return;
    std::vector<std::string> after = Trained({weights});
    after.insert(after.end(), heldout_stages_.begin(), heldout_stages_.end());
    PlannedStage& stage = Add(PlannedStage::Kind::kScore, "score:" + row.policy, std::move(after));
    stage.method = kHeldoutMethod;
    stage.initial = {weights};
    stage.options_json = Json{{"micro_batch_tokens", job_.sft.micro_batch_tokens}}.dump();
    row.score = stage.name;
  }

  void CollapseStudy() {
    const CollapseSection& study = job_.collapse;
    const auto steps = [&](int64_t records) {
      return std::max<int64_t>(
          1, std::llround(study.passes * static_cast<double>(records) / static_cast<double>(job_.sft.batch_size)));
    };
    const auto train = [&](const std::string& name, const MixtureSection& mixture, int64_t records,
                           std::vector<std::string> after) {
      Job job = job_;
      job.mixture = mixture;
      job.mixture.real_records = records;
      job.sft.max_steps = steps(records);
      PlannedStage& stage = Train(job, name, "sft", {kBaseModel}, std::move(after), 0);
      stage.weights_name = name;
      Json options = Json::parse(stage.options_json);
      options["weights_name"] = name;
      stage.options_json = options.dump();
      PlannedRow& row = plan_.rows.emplace_back();
      row.policy = name;
      row.rule = RuleName(mixture);
      row.trained = name;
      row.real_records = records;
      row.label = StrCat(row.rule, ", ", records, " real records");
      Score(row, name);
    };
    MixtureSection real_only;
    real_only.policy = "real_only";
    train("first", real_only, study.first_records, data_stages_);
    plan_.rows.back().label = StrCat("first model, ", study.first_records, " real records");
    PlannedStage& write = Add(PlannedStage::Kind::kRollout, "generated", {"first"});
    write.policy = "first";
    write.weights = {"first"};
    write.episodes = static_cast<uint64_t>(study.generated);
    write.tags = {"generated"};
    for (const MixtureSection& rule : study.rules) {
      for (const int64_t records : study.real_records) train(CollapseRow(rule, records), rule, records, {"generated"});
    }
  }

  void OfflineTraining() {
    const bool filtered_from_sft = Wants("filtered_sft") && job_.filtered_sft.start_from == "sft";
    const bool before_rounds = job_.method == "regenesis";
    if (Wants("sft") || job_.method == "q_sft" || before_rounds || filtered_from_sft)
      Train("sft", "sft", {kBaseModel}, data_stages_, 0);
    if (Wants("filtered_sft")) {
      const std::vector<std::string> after = filtered_from_sft ? std::vector<std::string>{"sft"} : data_stages_;
      Train("filtered_sft", "filtered_sft", {filtered_from_sft ? std::string("sft") : std::string(kBaseModel)}, after,
            0);
    }
    if (Wants("q_sft")) {
      const std::string start = job_.qsft.start_from == "behaviour" ? "sft" : kBaseModel;
      Train("q_sft", "q_sft", {"sft", start}, {"sft"}, 0);
    }
    if (Wants("sft") || before_rounds) EvaluateWeights("sft", {"sft"});
    if (Wants("filtered_sft")) EvaluateWeights("filtered_sft", {"filtered_sft"});
    if (Wants("q_sft")) EvaluateWeights("q_sft", {"sft", "q_sft"});
    plan_.policy_line.push_back(job_.method == "q_sft" ? std::vector<std::string>{"sft", "q_sft"}
                                                       : std::vector<std::string>{before_rounds ? "sft" : job_.method});
  }

  void OnlineRounds() {
    if (plan_.policy_line.empty()) {
      EvaluateWeights(kBaseModel, {kBaseModel});
      plan_.policy_line.push_back({kBaseModel});
    }
    std::vector<std::string> newest_data = data_stages_;
    for (int64_t round = 1; round <= job_.online.rounds; ++round) {
      const std::string name = StrCat("online-", round);
      // The acting policy is at most max_staleness rounds behind: that version has to be there before play begins.
      const int64_t oldest = std::max<int64_t>(0, round - 1 - job_.online.max_staleness);
      std::vector<std::string> after = Trained(plan_.policy_line[static_cast<size_t>(oldest)]);
      if (round > 1) after.push_back(StrCat("online-", round - 1));
      PlannedStage& play = Add(PlannedStage::Kind::kRollout, name, after);
      play.policy = job_.method;
      play.newest = true;
      play.episodes = static_cast<uint64_t>(job_.online.episodes);
      play.tags = {"online", name};
      newest_data = {name};
      TrainRound(round, name, newest_data);
    }
    EvaluateWeights(job_.method + "_online", plan_.policy_line.back());
  }

  // Goes on with the method's models on the mix of offline and generated data.
  void TrainRound(int64_t round, const std::string& name, const std::vector<std::string>& data) {
    const std::vector<std::string> previous = plan_.policy_line.back();
    std::vector<std::string> after = Trained(previous);
    after.insert(after.end(), data.begin(), data.end());
    if (job_.method != "q_sft") {
      const std::string stage = name + ":" + job_.method;
      Train(stage, job_.method, {previous[0]}, after, round);
      plan_.policy_line.push_back({stage});
      return;
    }
    const std::string behaviour = name + ":sft";
    const std::string value = name + ":q_sft";
    const bool first_value = previous.size() < 2;
    const std::string start = !first_value                          ? previous[1]
                              : job_.qsft.start_from == "behaviour" ? behaviour
                                                                    : std::string(kBaseModel);
    Train(behaviour, "sft", {previous[0]}, after, round);
    Train(value, "q_sft", {behaviour, start}, {behaviour}, round);
    plan_.policy_line.push_back({behaviour, value});
  }

  // Method regenesis: every arm starts from the same weights and goes its own way.
  void ChainRounds() {
    if (plan_.policy_line.empty()) {
      const size_t rows = plan_.rows.size();
      EvaluateWeights(kBaseModel, {kBaseModel});
      for (size_t i = rows; i < plan_.rows.size(); ++i) plan_.rows[i].label = "base model";
      plan_.policy_line.push_back({kBaseModel});
    }
    for (const char* arm : kArms)
      if (Wants(arm)) ChainRoundsOf(arm, plan_.policy_line.back()[0]);
  }

  void ChainRoundsOf(const std::string& arm, const std::string& start) {
    const RegenesisSection& o = job_.regenesis;
    // Records that this arm must not learn from: those of other arms, and its own that were not kept.
    std::vector<std::string> without = {kNotKeptTag};
    for (const char* other : kArms)
      if (arm != other && Wants(other)) without.emplace_back(other);
    std::string weights = start;
    for (int64_t round = 1; round <= o.rounds; ++round) {
      const std::string name = StrCat(arm, "-", round);
      PlannedStage& chains = Add(PlannedStage::Kind::kRollout, name, Trained({weights}));
      chains.policy = round == 1 ? start : StrCat(arm, "-", round - 1);
      chains.weights = {weights};
      chains.arm = arm;
      chains.episodes = static_cast<uint64_t>(o.questions);
      chains.first_question = static_cast<uint64_t>((round - 1) * o.questions);
      chains.tags = {arm, name, StrCat("round-", round)};
      Job job = job_;
      job.sft = o;
      job.online.sft = {.warmup_steps = o.warmup_steps};
      PlannedStage& train = Train(job, name + ":sft", "sft", {weights}, {name}, round);
      Json options = Json::parse(train.options_json);
      train.weights_name = arm;
      options["weights_name"] = arm;
      for (const std::string& tag : without) options["without_tags"].push_back(tag);
      train.options_json = options.dump();
      weights = train.name;
      if (o.train_on == "round") without.push_back(name);
      const size_t rows = plan_.rows.size();
      EvaluateWeights(name, {weights});
      for (size_t i = rows; i < plan_.rows.size(); ++i) {
        plan_.rows[i].arm = arm;
        plan_.rows[i].round = round;
        plan_.rows[i].label = StrCat(Label(arm), ", round ", round);
      }
    }
  }

  static std::vector<std::string> Trained(const std::vector<std::string>& stages) {
    std::vector<std::string> out;
    for (const std::string& stage : stages)
      if (stage != kBaseModel) out.push_back(stage);
    return out;
  }

  // round 0: offline.
  void Train(const std::string& name, const std::string& method, std::vector<std::string> initial,
             std::vector<std::string> after, int64_t round) {
    Train(job_, name, method, std::move(initial), std::move(after), round);
  }

  // The same with another job's settings.
  PlannedStage& Train(const Job& job, const std::string& name, const std::string& method,
                      std::vector<std::string> initial, std::vector<std::string> after, int64_t round) {
    after.insert(after.end(), heldout_stages_.begin(), heldout_stages_.end());
    PlannedStage& stage = Add(PlannedStage::Kind::kTrain, name, std::move(after));
    stage.method = method;
    stage.weights_name = method == "q_sft" ? "value" : method;
    stage.initial = std::move(initial);
    const Json resolved = Json::parse(JobToJson(job));
    Json options = resolved.at(method == "q_sft" ? "qsft" : method);
    if (round > 0) {
      const OnlineTrainSection& online = method == "q_sft" ? job.online.qsft
                                         : method == "sft" ? job.online.sft
                                                           : job.online.filtered_sft;
      if (online.max_steps >= 0) options["max_steps"] = online.max_steps;
      if (online.learning_rate >= 0) options["learning_rate"] = online.learning_rate;
      options["warmup_steps"] = online.warmup_steps;
    }
    options["weights_name"] = stage.weights_name;
    options["seed"] = stage.seed;
    options["without_tags"] = {kEvaluationTag, kHeldoutTag};
    options["mixture"] = resolved.at("mixture");
    options["generation_depth"] = round + 1;
    stage.steps = options["max_steps"];
    stage.options_json = options.dump();
    return stage;
  }

  PlannedRow& AddRow(const std::string& policy, const std::string& label, const std::string& tag) {
    PlannedRow& row = plan_.rows.emplace_back();
    row.policy = policy;
    row.label = label;
    row.tag = tag;
    return row;
  }

  // One stage a set; `set` null: the job's environment.
  PlannedStage& Evaluate(const std::string& policy, std::vector<std::string> after, const EvaluationSet* set) {
    const std::string name = "eval:" + policy + (set == nullptr ? "" : "@" + set->name);
    PlannedStage& stage = Add(PlannedStage::Kind::kRollout, name, std::move(after));
    stage.policy = policy;
    stage.evaluation = true;
    stage.episodes = static_cast<uint64_t>(job_.evaluate.episodes);
    stage.seed = job_.evaluate.seed;  // the same tasks for every policy
    stage.tags = {kEvaluationTag, stage.name};
    PlannedRow& row = AddRow(policy, Label(policy), stage.name);
    if (set != nullptr) {
      stage.set = row.set = set->name;
      if (set->episodes > 0) stage.episodes = static_cast<uint64_t>(set->episodes);
    }
    return stage;
  }

  std::vector<const EvaluationSet*> Sets() const {
    std::vector<const EvaluationSet*> sets;
    for (const EvaluationSet& set : job_.evaluate.sets) sets.push_back(&set);
    if (sets.empty()) sets.push_back(nullptr);
    return sets;
  }

  void EvaluateWeights(const std::string& policy, const std::vector<std::string>& weights) {
    if (job_.evaluate.episodes == 0 && heldout_stages_.empty()) return;
    const size_t first = plan_.rows.size();
    if (job_.evaluate.episodes > 0) {
      for (const EvaluationSet* set : Sets()) Evaluate(policy, Trained(weights), set).weights = weights;
    } else {
      AddRow(policy, Label(policy), "");
    }
    // A value model's probabilities are not those of a text.
    if (weights.size() != 1) return;
    Score(plan_.rows[first], weights[0]);
    for (size_t i = first; i < plan_.rows.size(); ++i) plan_.rows[i].score = plan_.rows[first].score;
  }

  void EvaluatePlayer(const std::string& player) {
    if (job_.evaluate.episodes == 0) return;
    for (const EvaluationSet* set : Sets()) {
      Evaluate("player:" + player, {}, set).player = player;
      PlannedRow& row = plan_.rows.back();
      row.label = player == job_.evaluate.best_player ? "best known player (" + player + ")" : "player " + player;
    }
  }

  // What all versions that played stored is computed again by the learner.
  void CheckRollouts() {
    if (!job_.compression.off()) return;  // those numbers are others
    std::vector<std::string> after, weights;
    for (const PlannedStage& stage : plan_.stages) {
      if (stage.kind != PlannedStage::Kind::kRollout || !stage.player.empty()) continue;
      after.push_back(stage.name);
      weights.insert(weights.end(), stage.weights.begin(), stage.weights.end());
    }
    if (after.empty()) return;
    // Those that online rounds may have played: all but what the last one made.
    for (int64_t round = 0; round < job_.online.rounds; ++round) {
      const std::vector<std::string>& version = plan_.policy_line[static_cast<size_t>(round)];
      weights.insert(weights.end(), version.begin(), version.end());
    }
    const std::vector<std::string> trained = Trained(weights);
    after.insert(after.end(), trained.begin(), trained.end());
    PlannedStage& check = Add(PlannedStage::Kind::kScore, "check:rollouts", std::move(after));
    check.method = kRolloutMethod;
    for (const std::string& name : weights)
      if (std::find(check.initial.begin(), check.initial.end(), name) == check.initial.end())
        check.initial.push_back(name);
    check.options_json = Json{
        {"support_epsilon", job_.qsft.support_epsilon},
        {"support_top_p", job_.qsft.support_top_p},
        {"remainder", job_.qsft.remainder},
        {"without_tags",
         {kEvaluationTag}}}.dump();
  }

  // Data first, then the policies as they were made, players last.
  void OrderRows() {
    const auto rank = [](const PlannedRow& row) {
      return row.policy == "data" ? 0 : row.policy.starts_with("player:") ? 2 : 1;
    };
    std::stable_sort(plan_.rows.begin(), plan_.rows.end(),
                     [&](const PlannedRow& a, const PlannedRow& b) { return rank(a) < rank(b); });
  }

  const Job& job_;
  Plan plan_;
  std::vector<std::string> data_stages_;
  std::vector<std::string> heldout_stages_;
};

}  // namespace

Plan MakePlan(const Job& job) { return Planner(job).Make(); }

}  // namespace quern
