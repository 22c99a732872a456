#pragma once

#include <gtest/gtest.h>

#include <cstring>

#include "actors/engine.h"

namespace quern {

inline void ExpectSame(const Completion& a, const Completion& b) {
  ASSERT_EQ(a.tokens, b.tokens);
  ASSERT_EQ(a.log_probs.size(), b.log_probs.size());
  EXPECT_EQ(std::memcmp(a.log_probs.data(), b.log_probs.data(), a.log_probs.size() * sizeof(float)), 0);
  EXPECT_EQ(a.finish_reason, b.finish_reason);
}

}  // namespace quern
