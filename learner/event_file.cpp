#include "learner/event_file.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <bit>
#include <cerrno>

#include "base/deadline.h"
#include "base/file.h"
#include "base/strings.h"

namespace quern {

namespace {

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value & 1) != 0 ? (value >> 1) ^ 0x82f63b78u : value >> 1;
    table[i] = value;
  }
  return table;
}

uint32_t MaskedCrc(std::string_view bytes) { return std::rotr(Crc32c(bytes), 15) + 0xa282ead8u; }

template <typename T>
void AppendFixed(std::string* out, T value) {
  static_assert(std::endian::native == std::endian::little);
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void AppendVarint(std::string* out, uint64_t value) {
  for (; value >= 128; value >>= 7) *out += static_cast<char>(value | 128);
  *out += static_cast<char>(value);
}

// Wire types of Protocol Buffers: 0 varint, 1 eight bytes, 2 bytes with their length, 5 four bytes.
void AppendKey(std::string* out, uint32_t field, uint32_t wire_type) { AppendVarint(out, field << 3 | wire_type); }
void AppendBytes(std::string* out, uint32_t field, std::string_view bytes) {
  AppendKey(out, field, 2);
  AppendVarint(out, bytes.size());
  *out += bytes;
}

// Event: wall_time = 1, step = 2, file_version = 3, summary = 5.
std::string EventAt(double seconds) {
  std::string event;
  AppendKey(&event, 1, 1);
  AppendFixed(&event, seconds);
  return event;
}

}  // namespace

uint32_t Crc32c(std::string_view bytes) {
  static constexpr std::array<uint32_t, 256> kTable = MakeTable();
  uint32_t crc = ~0u;
  for (const char c : bytes) crc = kTable[(crc ^ static_cast<unsigned char>(c)) & 255] ^ (crc >> 8);
  return ~crc;
}

Result<std::unique_ptr<EventFile>> EventFile::Create(const std::string& folder) {
  // Files of one folder are read as one run, in the order of their names.
  static std::atomic<int> count{0};
  QUERN_RETURN_IF_ERROR(MakeDirectories(folder));
  char host[256] = "host";
  (void)gethostname(host, sizeof(host) - 1);
  const std::string path = JoinPath(
      folder, StrFormat("events.out.tfevents.%010.0f.%s.%d.%d", UnixSeconds(), host, getpid(), count.fetch_add(1)));
  std::FILE* file = std::fopen(path.c_str(), "wbe");
  if (file == nullptr) return FromErrno(errno, path);
  std::unique_ptr<EventFile> events(new EventFile(file, path));
  std::string version = EventAt(UnixSeconds());
  AppendBytes(&version, 3, "brain.Event:2");
  QUERN_RETURN_IF_ERROR(events->WriteFrame(version));
  return events;
}

EventFile::~EventFile() { std::fclose(file_); }

Status EventFile::Write(int64_t step, const std::vector<std::pair<std::string, double>>& values) {
  std::string summary;
  for (const auto& [tag, value] : values) {
    std::string one;
    AppendBytes(&one, 1, tag);
    AppendKey(&one, 2, 5);
    AppendFixed(&one, static_cast<float>(value));
    AppendBytes(&summary, 1, one);
  }
  std::string event = EventAt(UnixSeconds());
  AppendKey(&event, 2, 0);
  AppendVarint(&event, static_cast<uint64_t>(step));
  AppendBytes(&event, 5, summary);
  return WriteFrame(event);
}

Status EventFile::WriteFrame(std::string_view payload) {
  std::string frame;
  AppendFixed(&frame, static_cast<uint64_t>(payload.size()));
  AppendFixed(&frame, MaskedCrc(frame));
  frame += payload;
  AppendFixed(&frame, MaskedCrc(payload));
  if (std::fwrite(frame.data(), 1, frame.size(), file_) != frame.size() || std::fflush(file_) != 0)
    return FromErrno(errno, path_);
  return {};
}

}  // namespace quern
