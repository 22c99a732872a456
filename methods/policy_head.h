#pragma once

#include <cstdint>
#include <span>

namespace quern {

// How the logits of one or more models become the distribution that tokens are drawn from. Rows are independent.
class PolicyHead {
 public:
  virtual ~PolicyHead() = default;
  virtual int models() const = 0;
  // model_logits[m]: the row of model m, V logits. out: V logits of the policy; -infinity for ids it never takes.
  // Thread-safe.
  virtual void Combine(std::span<const std::span<const float>> model_logits, std::span<float> out) const = 0;
  // Whether Combine would only copy the one model's row, but for the id never() (-1: none).
  virtual bool copies() const { return false; }
  virtual int32_t never() const { return -1; }
};

// One model's own distribution; `reserved` (-1: none) is never taken.
class SingleModelHead : public PolicyHead {
 public:
  explicit SingleModelHead(int32_t reserved = -1) : reserved_(reserved) {}
  int models() const override { return 1; }
  void Combine(std::span<const std::span<const float>> model_logits, std::span<float> out) const override;
  bool copies() const override { return true; }
  int32_t never() const override { return reserved_; }

 private:
  int32_t reserved_;
};

}  // namespace quern
