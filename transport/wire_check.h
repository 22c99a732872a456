#pragma once

#include <google/protobuf/descriptor.h>

#include <string_view>

#include "base/status.h"

namespace quern {

struct WireLimits {
  size_t elements = size_t{1} << 18;  // fields, at every depth together
  int depth = 16;
};

// Walks a serialised message without allocating anything: InvalidArgument where it is no message of that type, is
// nested too deeply, or has so many elements that parsing it would take far more memory than its bytes (an empty
// message of two bytes becomes an object).
Status CheckWire(std::string_view bytes, const google::protobuf::Descriptor& type, const WireLimits& limits = {});

}  // namespace quern
