#include "learner/event_file.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/deadline.h"
#include "base/file.h"
#include "base/strings.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

// A reader of its own, written from TFRecord's and Event's definitions: bit by bit where the writer has tables.
uint32_t SlowCrc32c(const std::string& bytes) {
  uint32_t crc = 0xffffffff;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int i = 0; i < 8; ++i) crc = crc & 1 ? (crc >> 1) ^ 0x82f63b78 : crc >> 1;
  }
  return crc ^ 0xffffffff;
}
uint32_t Unmask(uint32_t masked) {
  const uint32_t rotated = masked - 0xa282ead8;
  return rotated >> 17 | rotated << 15;
}
template <typename T>
T Take(const std::string& bytes, size_t* at) {
  T value{};
  if (*at + sizeof(T) <= bytes.size()) std::memcpy(&value, bytes.data() + *at, sizeof(T));
  *at += sizeof(T);
  return value;
}
uint64_t TakeVarint(const std::string& bytes, size_t* at) {
  uint64_t value = 0;
  for (int shift = 0; *at < bytes.size(); shift += 7) {
    const auto byte = static_cast<unsigned char>(bytes[(*at)++]);
    value |= static_cast<uint64_t>(byte & 127) << shift;
    if (byte < 128) break;
  }
  return value;
}
std::string TakeBytes(const std::string& bytes, size_t* at) {
  const uint64_t size = TakeVarint(bytes, at);
  std::string out = bytes.substr(*at, size);
  *at += size;
  return out;
}

struct Event {
  double time = 0;
  uint64_t step = 0;
  std::string version;
  std::vector<std::pair<std::string, float>> values;
};

Event ParseEvent(const std::string& bytes) {
  Event event;
  for (size_t at = 0; at < bytes.size();) {
    switch (TakeVarint(bytes, &at)) {
      case 1 << 3 | 1: event.time = Take<double>(bytes, &at); break;
      case 2 << 3 | 0: event.step = TakeVarint(bytes, &at); break;
      case 3 << 3 | 2: event.version = TakeBytes(bytes, &at); break;
      case 5 << 3 | 2: {
        const std::string summary = TakeBytes(bytes, &at);
        for (size_t in = 0; in < summary.size();) {
          EXPECT_EQ(TakeVarint(summary, &in), 1u << 3 | 2);
          const std::string value = TakeBytes(summary, &in);
          size_t place = 0;
          EXPECT_EQ(TakeVarint(value, &place), 1u << 3 | 2);
          const std::string tag = TakeBytes(value, &place);
          EXPECT_EQ(TakeVarint(value, &place), 2u << 3 | 5);
          event.values.emplace_back(tag, Take<float>(value, &place));
          EXPECT_EQ(place, value.size());
        }
        break;
      }
      default: ADD_FAILURE() << "unknown field"; return event;
    }
  }
  return event;
}

TEST(EventFile, KnownChecksums) {  // of RFC 3720, appendix B.4
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);
}

TEST(EventFile, ReadsBackAsWritten) {
  const TemporaryFolder folder;
  const std::string stage = JoinPath(folder.path(), "online-1:sft");
  const double before = UnixSeconds();
  {
    auto file = EventFile::Create(stage);
    ASSERT_TRUE(file.ok()) << file.status().message();
    for (int step = 1; step <= 300; ++step)
      ASSERT_TRUE(
          (*file)->Write(step, {{"loss", 1.0 / step}, {"entropy", -step}, {"an empty tag follows", 0}, {"", 1}}).ok());
    // A second one of the same moment does not write over the first.
    ASSERT_TRUE(EventFile::Create(stage).ok());
  }
  const auto names = *ListDirectory(stage);
  ASSERT_EQ(names.size(), 2u);
  EXPECT_TRUE(names[0].starts_with("events.out.tfevents."));
  const std::string bytes = *ReadFile(JoinPath(stage, names[0]));
  std::vector<Event> events;
  for (size_t at = 0; at < bytes.size();) {
    const size_t begin = at;
    const auto length = Take<uint64_t>(bytes, &at);
    ASSERT_LE(at + length + 8, bytes.size());
    EXPECT_EQ(Unmask(Take<uint32_t>(bytes, &at)), SlowCrc32c(bytes.substr(begin, 8)));
    const std::string payload = bytes.substr(at, length);
    at += length;
    EXPECT_EQ(Unmask(Take<uint32_t>(bytes, &at)), SlowCrc32c(payload));
    events.push_back(ParseEvent(payload));
    EXPECT_GE(events.back().time, before);
  }
  ASSERT_EQ(events.size(), 301u);
  EXPECT_EQ(events[0].version, "brain.Event:2");
  for (int step = 1; step <= 300; ++step) {
    const Event& event = events[static_cast<size_t>(step)];
    EXPECT_EQ(event.step, static_cast<uint64_t>(step));
    ASSERT_EQ(event.values.size(), 4u);
    EXPECT_EQ(event.values[0], (std::pair<std::string, float>("loss", static_cast<float>(1.0 / step))));
    EXPECT_EQ(event.values[1].second, static_cast<float>(-step));
  }
}

TEST(EventFile, AFolderThatCannotBeMadeIsNamed) {
  const auto file = EventFile::Create("/proc/none/there");
  ASSERT_FALSE(file.ok());
  EXPECT_NE(file.status().message().find("/proc/none"), std::string::npos);
}

}  // namespace
}  // namespace quern
