#include "learner/train_stage.h"

#include <nlohmann/json.hpp>
#include <set>

namespace quern {

namespace {

using Json = nlohmann::json;

class Fields {
 public:
  Fields(const Json& object, std::string stage) : object_(object), stage_(std::move(stage)) {}

  template <typename T>
  void Read(const char* key, T& out) {
    known_.insert(key);
    const auto it = object_.find(key);
    if (it == object_.end() || !status_.ok()) return;
    try {
      out = it->get<T>();
    } catch (const Json::exception&) {
      status_ = InvalidArgument(stage_ + ": option " + key + " has the wrong type: " + it->dump());
    }
  }
  Status Finish() {
    for (const auto& [key, value] : object_.items()) {
      if (status_.ok() && !known_.contains(key)) status_ = InvalidArgument(stage_ + ": unknown option " + key);
    }
    return status_;
  }

 private:
  const Json& object_;
  std::string stage_;
  std::set<std::string> known_;
  Status status_;
};

Status ReadMixture(const Json& object, const std::string& stage, TrainStageOptions& o) {
  MixtureOptions& m = o.mixture;
  if (!object.is_object()) return InvalidArgument(stage + ": option mixture is not an object");
  Fields f(object, stage + ": mixture");
  std::string policy = "fixed", over = "progress";
  Json schedule = Json::array(), c2 = Json::object();
  f.Read("policy", policy);
  f.Read("share", m.share);
  f.Read("schedule", schedule);
  f.Read("schedule_over", over);
  f.Read("rho", m.rho);
  f.Read("omega_max", m.omega_max);
  f.Read("final_phase", m.final_phase);
  f.Read("sigma2d", m.sigma2d);
  f.Read("c2", c2);
  f.Read("probe_steps", m.probe_steps);
  f.Read("probe_sizes", m.probe_sizes);
  f.Read("checks", o.mixture_checks);
  f.Read("follow_tolerance", m.follow_tolerance);
  f.Read("hinted_max", m.hinted_max);
  f.Read("real_records", m.real_records);
  QUERN_RETURN_IF_ERROR(f.Finish());
  Fields shifts(c2, stage + ": mixture.c2");
  for (size_t q = kVerifiedData; q < kDataClasses; ++q) shifts.Read(kDataClassNames[q], m.c2[q]);
  QUERN_RETURN_IF_ERROR(shifts.Finish());
  for (const Json& point : schedule) {
    Fields fields(point, stage + ": mixture.schedule");
    SharePoint& out = m.schedule.emplace_back();
    fields.Read("at", out.at);
    fields.Read("share", out.share);
    QUERN_RETURN_IF_ERROR(fields.Finish());
  }
  m.schedule_by_real = over == "real_records";
  using Policy = MixtureOptions::Policy;
  m.policy = policy == "controller"  ? Policy::kController
             : policy == "scheduled" ? Policy::kScheduled
             : policy == "real_only" ? Policy::kRealOnly
                                     : Policy::kFixed;
  if (m.policy == Policy::kScheduled && m.schedule.empty())
    return InvalidArgument(stage + ": mixture.schedule is empty");
  return {};
}

}  // namespace

Result<TrainStageOptions> ParseTrainStage(const v1::TrainStage& stage) {
  const Json object = Json::parse(stage.options_json(), nullptr, false);
  if (!object.is_object()) return InvalidArgument(stage.name() + ": options are not a JSON object");
  TrainStageOptions o;
  o.method = stage.method();
  if (o.method != kHeldoutMethod && o.method != kRolloutMethod && o.method != "sft" && o.method != "filtered_sft" &&
      o.method != "q_sft") {
    return InvalidArgument(stage.name() + ": unknown method " + o.method);
  }
  Fields f(object, stage.name());
  std::string remainder = "dummy", rule = "ratio", reward_scale = "linear", start_from;
  f.Read("max_steps", o.optimizer.max_steps);
  f.Read("learning_rate", o.optimizer.learning_rate);
  f.Read("warmup_steps", o.optimizer.warmup_steps);
  f.Read("lr_schedule", o.optimizer.schedule);
  f.Read("weight_decay", o.optimizer.weight_decay);
  f.Read("max_grad_norm", o.optimizer.max_grad_norm);
  f.Read("memory_loss", o.optimizer.memory_loss);
  f.Read("adam_beta1", o.optimizer.beta1);
  f.Read("adam_beta2", o.optimizer.beta2);
  f.Read("adam_epsilon", o.optimizer.eps);
  f.Read("batch_size", o.batch_size);
  f.Read("micro_batch_tokens", o.micro_batch_tokens);
  f.Read("top_fraction", o.top_fraction);
  std::string selector = "uniform";
  f.Read("selector", selector);
  f.Read("priority_exponent", o.priority_exponent);
  f.Read("window", o.window);
  f.Read("samples_per_insert", o.limits.samples_per_insert);
  f.Read("min_records", o.limits.min_records);
  f.Read("limiter_timeout_s", o.limits.timeout_s);
  f.Read("beta", o.q_sft.beta);
  f.Read("gamma_turn", o.q_sft.gamma_turn);
  f.Read("gamma_token", o.q_sft.gamma_token);
  f.Read("polyak", o.q_sft.polyak);
  f.Read("lambda_start", o.q_sft.lambda_start);
  f.Read("lambda_end", o.q_sft.lambda_end);
  f.Read("lambda_anneal", o.q_sft.lambda_anneal);
  f.Read("reward_scale", reward_scale);
  f.Read("reward_temperature", o.reward_temperature);
  f.Read("remainder", remainder);
  f.Read("rule", rule);
  f.Read("support_epsilon", o.q_sft.support_epsilon);
  f.Read("support_top_p", o.q_sft.support_top_p);
  f.Read("start_from", start_from);
  f.Read("weights_name", o.weights_name);
  f.Read("seed", o.seed);
  f.Read("watermark", o.watermark);
  f.Read("without_tags", o.without_tags);
  std::vector<std::vector<double>> phases;  // [real records, held-out loss] each
  f.Read("phases", phases);
  f.Read("halvings", o.halvings);
  for (const std::vector<double>& phase : phases) {
    if (phase.size() != 2) return InvalidArgument(stage.name() + ": option phases has an entry that is not a pair");
    o.phases.push_back({phase[0], phase[1]});
  }
  Json mixture = Json::object();
  f.Read("mixture", mixture);
  f.Read("generation_depth", o.generation_depth);
  QUERN_RETURN_IF_ERROR(f.Finish());
  QUERN_RETURN_IF_ERROR(ReadMixture(mixture, stage.name(), o));
  o.selector = selector == "prioritised" ? v1::SELECTOR_PRIORITISED
               : selector == "fifo"      ? v1::SELECTOR_FIFO
                                         : v1::SELECTOR_UNIFORM;
  o.q_sft.remainder = remainder == "uniform" ? QSftOptions::Remainder::kUniform : QSftOptions::Remainder::kDummy;
  o.q_sft.rule = rule == "paper" ? QSftOptions::Rule::kPaper : QSftOptions::Rule::kRatio;
  o.reward_scale = reward_scale == "exponential" ? RewardScale::Kind::kExponential : RewardScale::Kind::kLinear;
  if (o.weights_name.empty()) o.weights_name = stage.name();
  o.optimizer.seed = o.seed;
  return o;
}

}  // namespace quern
