#include "transport/wire_check.h"

#include "base/strings.h"

namespace quern {

namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

// https://protobuf.dev/programming-guides/encoding
enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

class Walker {
 public:
  explicit Walker(const WireLimits& limits) : limits_(limits) {}

  // Null: no message of that type.
  const char* Walk(std::string_view bytes, const Descriptor* type, int depth) {
    if (depth > limits_.depth) return "is nested too deeply";
    while (!bytes.empty()) {
      if (++elements_ > limits_.elements) return "has too many elements";
      uint64_t tag = 0, value = 0;
      if (!Varint(bytes, tag)) return kBroken;
      switch (tag & 7) {
        case kVarint:
          if (!Varint(bytes, value)) return kBroken;
          break;
        case kFixed64:
          if (!Skip(bytes, 8)) return kBroken;
          break;
        case kFixed32:
          if (!Skip(bytes, 4)) return kBroken;
          break;
        case kBytes: {
          if (!Varint(bytes, value) || value > bytes.size()) return kBroken;
          const std::string_view inside = bytes.substr(0, static_cast<size_t>(value));
          bytes.remove_prefix(inside.size());
          const FieldDescriptor* field = type->FindFieldByNumber(static_cast<int>(tag >> 3));
          if (field == nullptr) break;
          if (field->type() == FieldDescriptor::TYPE_MESSAGE) {
            if (const char* problem = Walk(inside, field->message_type(), depth + 1)) return problem;
          } else if (field->is_packable()) {
            elements_ += inside.size();  // at most
            if (elements_ > limits_.elements) return "has too many elements";
          }
          break;
        }
        default: return kBroken;  // groups, which proto3 has none of
      }
    }
    return nullptr;
  }

 private:
  static constexpr char kBroken[] = "is broken";

  static bool Skip(std::string_view& bytes, size_t count) {
    if (bytes.size() < count) return false;
    bytes.remove_prefix(count);
    return true;
  }
  static bool Varint(std::string_view& bytes, uint64_t& value) {
    value = 0;
    for (size_t i = 0; i < bytes.size() && i < 10; ++i) {
      const auto byte = static_cast<uint8_t>(bytes[i]);
      value |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
      if (byte < 0x80) return Skip(bytes, i + 1);
    }
    return false;
  }

  const WireLimits& limits_;
  size_t elements_ = 0;
};

}  // namespace

Status CheckWire(std::string_view bytes, const Descriptor& type, const WireLimits& limits) {
  const char* problem = Walker(limits).Walk(bytes, &type, 0);
  return problem == nullptr ? Status() : InvalidArgument(StrCat("the request, a ", type.full_name(), ", ", problem));
}

}  // namespace quern
