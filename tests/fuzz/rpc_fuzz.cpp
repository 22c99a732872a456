#include "base/check.h"
#include "proto/coordinator.pb.h"
#include "proto/replay.pb.h"
#include "transport/wire_check.h"

// Every request that a server takes, and what a joining actor is answered, by the first byte. What CheckWire lets
// through parses in little memory or not at all; what the library would accept CheckWire refuses for size or depth
// only.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  static const google::protobuf::Message* const kTypes[] = {
      &v1::HelloRequest::default_instance(),     &v1::HeartbeatRequest::default_instance(),
      &v1::LeaseTaskRequest::default_instance(), &v1::CompleteTaskRequest::default_instance(),
      &v1::NextStageRequest::default_instance(), &v1::StageDoneRequest::default_instance(),
      &v1::PublishRequest::default_instance(),   &v1::OpenWeightsRequest::default_instance(),
      &v1::StatusRequest::default_instance(),    &v1::StopRequest::default_instance(),
      &v1::InsertRequest::default_instance(),    &v1::OpenWriterRequest::default_instance(),
      &v1::ContainsRequest::default_instance(),  &v1::SampleRequest::default_instance(),
      &v1::QueryRequest::default_instance(),     &v1::StatsRequest::default_instance(),
      &v1::BackupRequest::default_instance(),    &v1::Trajectory::default_instance(),
      &v1::RolloutTask::default_instance(),      &v1::StatusReply::default_instance(),
      &v1::HelloReply::default_instance(),       &v1::OpenWeightsReply::default_instance()};
  if (size == 0) return 0;
  const google::protobuf::Message& type = *kTypes[data[0] % std::size(kTypes)];
  const std::string_view bytes(reinterpret_cast<const char*>(data + 1), size - 1);
  const std::unique_ptr<google::protobuf::Message> message(type.New());
  const Status checked = CheckWire(bytes, *type.GetDescriptor(), {.elements = 1000, .depth = 8});
  if (!checked.ok()) {
    QUERN_CHECK(checked.message().find('\n') == std::string::npos);
    return 0;
  }
  if (!message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return 0;
  QUERN_CHECK(message->SpaceUsedLong() < 64 * bytes.size() + 200'000, message->DebugString());
  const std::string again = message->SerializeAsString();
  QUERN_CHECK(CheckWire(again, *type.GetDescriptor(), {.elements = 100'000, .depth = 8}).ok());
  return 0;
}
