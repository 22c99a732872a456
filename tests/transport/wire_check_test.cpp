#include "transport/wire_check.h"

#include <google/protobuf/descriptor.pb.h>
#include <gtest/gtest.h>

#include "base/strings.h"
#include "proto/coordinator.pb.h"
#include "proto/replay.pb.h"
#include "transport/rpc.h"

namespace quern {
namespace {

// `depth` messages inside one another, each the field with this tag of the one before.
std::string Nested(uint8_t tag, int depth) {
  std::string bytes;
  for (int i = 0; i < depth; ++i) {
    std::string length;
    for (size_t left = bytes.size(); true; left >>= 7) {
      length.push_back(static_cast<char>((left & 0x7f) | (left > 0x7f ? 0x80 : 0)));
      if (left <= 0x7f) break;
    }
    bytes = std::string(1, static_cast<char>(tag)) + length + bytes;
  }
  return bytes;
}

TEST(WireCheck, WhatTheServersAreSentPasses) {
  v1::HeartbeatRequest heartbeat;
  heartbeat.set_role("actor");
  for (int i = 0; i < 100; ++i) (*heartbeat.mutable_gauges())[StrCat("gauge ", i)] = i;
  EXPECT_TRUE(CheckWire(heartbeat.SerializeAsString(), *heartbeat.descriptor()).ok());
  v1::RolloutTask task;
  task.mutable_program()->add_stages()->mutable_sampling()->set_temperature(0.5f);
  task.mutable_policy()->add_weights()->set_name("sft");
  EXPECT_TRUE(CheckWire(task.SerializeAsString(), *task.descriptor()).ok());
  EXPECT_TRUE(CheckWire("", *task.descriptor()).ok());
}

TEST(WireCheck, TooManyElementsAndTooDeep) {
  // Empty sub-messages: two bytes each, an object each once parsed.
  std::string bytes;
  for (int i = 0; i < 300'000; ++i) bytes += std::string("\x1a\0", 2);  // player_options
  const Status many = CheckWire(bytes, *v1::PolicySpec::descriptor());
  EXPECT_EQ(many.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(many.message().find("too many elements"), std::string::npos) << many.message();
  // Packed numbers count as well.
  const std::string budgets = std::string("\x0a\xe0\xa7\x12", 4) + std::string(300'000, '\1');
  EXPECT_FALSE(CheckWire(budgets, *v1::Compression::descriptor()).ok());
  // A descriptor of descriptors nests for ever: DescriptorProto.nested_type.
  const auto& recursive = *google::protobuf::DescriptorProto::descriptor();
  EXPECT_TRUE(CheckWire(Nested(0x1a, 16), recursive).ok());
  const Status deep = CheckWire(Nested(0x1a, 50'000), recursive);
  EXPECT_NE(deep.message().find("nested too deeply"), std::string::npos) << deep.message();
}

TEST(WireCheck, BrokenBytes) {
  const auto& type = *v1::HelloRequest::descriptor();
  for (const std::string& bytes :
       {std::string("\x0a"),
        std::string("\x0a\x05"
                    "ab"),
        std::string("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), std::string("\x0b"), std::string("\x0f"),
        std::string("\x09"
                    "1234"),
        std::string("\x0d"
                    "12"),
        std::string("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")})
    EXPECT_FALSE(CheckWire(bytes, type).ok());
}

// Through a server: refused, counted, and the next request is served.
TEST(WireCheck, AServerRefusesAndCounts) {
  RpcServer server;
  server.Handle("hello",
                TypedHandler<v1::PolicySpec, v1::HelloReply>([](const auto& request) -> Result<v1::HelloReply> {
                  v1::HelloReply reply;
                  reply.set_run_directory(request.name());
                  return reply;
                }));
  ASSERT_TRUE(server.Start("inproc://wire-check").ok());
  const auto client = RpcClient::Connect(server.address());
  ASSERT_TRUE(client.ok());
  const Deadline deadline = Deadline::After(std::chrono::seconds(20));
  std::string many;
  for (int i = 0; i < 300'000; ++i) many += std::string("\x1a\0", 2);
  EXPECT_EQ((*client)->Call("hello", many, deadline).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ((*client)->Call("hello", std::string(1000, '\xff'), deadline).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(server.counters().rejected, 2u);
  v1::PolicySpec good;
  good.set_name("x");
  const auto reply = (*client)->Call<v1::HelloReply>("hello", good, deadline);
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reply->run_directory(), "x");
}

}  // namespace
}  // namespace quern
