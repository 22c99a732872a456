#include "base/check.h"
#include "base/log.h"
#include "replay/store.h"
#include "tests/fuzz/scratch.h"

// An insert as it comes from an actor, read by the store without Protobuf's parser: refused in one line, or what that
// parser reads, where it reads it.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  static const std::unique_ptr<Store> store = [] {
    SetLogLevel(LogLevel::kError);
    StoreOptions options;
    options.limits.tokens = 4096;
    options.limits.records_per_insert = 64;
    auto opened = Store::Open(Scratch() + "/store", options);
    QUERN_CHECK(opened.ok(), opened.status().ToString());
    v1::OpenWriterRequest writer;
    writer.set_writer("w");
    QUERN_CHECK((*opened)->OpenWriter(writer).ok());
    return std::move(*opened);
  }();
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const uint64_t before = store->watermark();
  const auto reply = store->InsertBytes(bytes);
  if (!reply.ok()) {
    QUERN_CHECK(reply.status().message().find('\n') == std::string::npos, reply.status().message());
    QUERN_CHECK(store->watermark() == before && store->read_only_reason().empty());
    return 0;
  }
  QUERN_CHECK(store->watermark() == before + reply->inserted());
  v1::InsertRequest request;
  if (!request.ParseFromArray(data, static_cast<int>(size))) return 0;  // it takes no tags of more than five bytes
  const auto records = static_cast<uint64_t>(request.trajectories_size());
  QUERN_CHECK(reply->gap() || reply->inserted() + reply->duplicates() == records);
  // The same once more is stored already.
  const auto again = store->Insert(request);
  QUERN_CHECK(again.ok() && again->inserted() == 0, again.status().ToString());
  return 0;
}
