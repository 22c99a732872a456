#include "learner/batch_source.h"

#include "base/strings.h"

namespace quern {

namespace {

v1::SampleRequest RequestOf(const DrawOptions& options) {
  v1::SampleRequest request;
  for (const std::string& tag : options.tags) request.mutable_filter()->add_tags(tag);
  for (const std::string& tag : options.without_tags) request.mutable_filter()->add_without_tags(tag);
  request.set_watermark(options.watermark);
  request.set_seed(options.seed);
  request.set_top_fraction(static_cast<float>(options.top_fraction));
  request.set_selector(options.selector);
  request.set_priority_exponent(static_cast<float>(options.priority_exponent));
  request.set_window(options.window);
  return request;
}

v1::SamplePart& AddPart(const DrawOptions& options, size_t data_class, v1::SampleRequest& request) {
  v1::SamplePart& part = *request.add_parts();
  part.set_data_class(static_cast<v1::DataClass>(data_class + 1));
  part.set_limit(options.limits[data_class]);
  return part;
}

}  // namespace

Result<uint64_t> CountRecords(const DrawOptions& options) {
  v1::QueryRequest request;
  *request.mutable_filter() = RequestOf(options).filter();
  request.set_count_only(true);
  request.set_pruned_too(true);
  QUERN_ASSIGN_OR_RETURN(const v1::QueryReply reply, options.replay->Query(request, Deadline::After(options.timeout)));
  return reply.count();
}

Result<DataSummary> DescribeData(const DrawOptions& options) {
  v1::SampleRequest request = RequestOf(options);
  request.set_describe(true);
  for (size_t q = 0; q < kDataClasses; ++q) AddPart(options, q, request);
  QUERN_ASSIGN_OR_RETURN(const v1::SampleReply reply,
                         options.replay->Sample(request, Deadline::After(options.timeout)));
  if (reply.parts_size() != kDataClasses) {
    return Internal(StrCat("the store described ", reply.parts_size(), " classes of data, not ", int{kDataClasses}));
  }
  DataSummary summary;
  for (size_t q = 0; q < kDataClasses; ++q) summary[q] = reply.parts(static_cast<int>(q));
  return summary;
}

Result<TrainingBatch> FetchBatch(const DrawOptions& options, const std::array<DrawPlan::Draw, kDataClasses>& draws) {
  v1::SampleRequest request = RequestOf(options);
  for (size_t q = 0; q < kDataClasses; ++q) {
    if (draws[q].count == 0) continue;
    v1::SamplePart& part = AddPart(options, q, request);
    part.set_first(draws[q].first);
    part.set_count(draws[q].count);
  }
  QUERN_ASSIGN_OR_RETURN(const v1::SampleReply reply,
                         options.replay->Sample(request, Deadline::After(options.timeout)));
  std::vector<v1::Trajectory> trajectories(static_cast<size_t>(reply.trajectories_size()));
  for (int i = 0; i < reply.trajectories_size(); ++i) {
    v1::Trajectory& t = trajectories[static_cast<size_t>(i)];
    if (!t.ParseFromString(reply.trajectories(i))) {
      return DataLoss(StrCat("record ", reply.numbers(i), " does not parse"));
    }
    QUERN_RETURN_IF_ERROR(TokenizeTrajectory(*options.tokenizer, options.batch, t));
  }
  return BuildBatch(trajectories, options.batch);
}

Result<TrainingBatch> BatchSource::Next(int64_t step) {
  if (!pending_.valid()) pending_ = Start(step);
  Result<TrainingBatch> batch = pending_.get();
  if (step + 1 < steps_) pending_ = Start(step + 1);
  return batch;
}

std::future<Result<TrainingBatch>> BatchSource::Start(int64_t step) {
  return std::async(std::launch::async, [this, step] { return FetchBatch(options_, plan_.At(step)); });
}

}  // namespace quern
