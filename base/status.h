#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/check.h"

namespace quern {

enum class StatusCode {
  kOk,
  kInvalidArgument,  // the caller's input is wrong: files, configuration, user data
  kNotFound,
  kAlreadyExists,
  kFailedPrecondition,  // right input, wrong state
  kUnimplemented,       // understood, but not supported; the message says what is
  kUnavailable,         // a peer or resource is away; trying again may help
  kDeadlineExceeded,
  kResourceExhausted,  // disk, memory, queue
  kDataLoss,           // corruption found
  kCancelled,
  kInternal,
};

const char* StatusCodeName(StatusCode code);

// The outcome of something that may fail for reasons outside the program. One pointer wide when ok. The message is one
// line that names the object (file, line, key, peer) and what to do.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message);

  bool ok() const { return rep_ == nullptr; }
  StatusCode code() const { return rep_ ? rep_->code : StatusCode::kOk; }
  const std::string& message() const;
  // "invalid argument: model.safetensors: header length 99 exceeds the file".
  std::string ToString() const;
  // The same status with `context + ": "` in front of the message; ok stays ok.
  Status Annotate(const std::string& context) const;

 private:
  struct Rep {
    StatusCode code;
    std::string message;
  };
  std::shared_ptr<const Rep> rep_;
};

Status InvalidArgument(std::string message);
Status NotFound(std::string message);
Status AlreadyExists(std::string message);
Status FailedPrecondition(std::string message);
Status Unimplemented(std::string message);
Status Unavailable(std::string message);
Status DeadlineExceeded(std::string message);
Status ResourceExhausted(std::string message);
Status DataLoss(std::string message);
Status Cancelled(std::string message);
Status Internal(std::string message);
// From errno: "what: No such file or directory", with a fitting code.
Status FromErrno(int error, const std::string& what);

// A value or the Status that explains its absence.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}                                       // NOLINT: implicit on purpose
  Result(Status status) : status_(std::move(status)) { QUERN_CHECK(!status_.ok()); }  // NOLINT

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & {
    QUERN_CHECK(ok(), status_.ToString());
    return *value_;
  }
  const T& value() const& {
    QUERN_CHECK(ok(), status_.ToString());
    return *value_;
  }
  T&& value() && {
    QUERN_CHECK(ok(), status_.ToString());
    return std::move(*value_);
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace quern

#define QUERN_CONCAT_INNER(a, b) a##b
#define QUERN_CONCAT(a, b) QUERN_CONCAT_INNER(a, b)

#define QUERN_RETURN_IF_ERROR(expr)                                                        \
  do {                                                                                     \
    if (::quern::Status quern_status_ = (expr); !quern_status_.ok()) return quern_status_; \
  } while (false)

// QUERN_ASSIGN_OR_RETURN(auto config, LoadConfig(dir));
#define QUERN_ASSIGN_OR_RETURN(lhs, expr) QUERN_ASSIGN_OR_RETURN_INNER(QUERN_CONCAT(quern_result_, __LINE__), lhs, expr)
#define QUERN_ASSIGN_OR_RETURN_INNER(result, lhs, expr) \
  auto result = (expr);                                 \
  if (!result.ok()) return result.status();             \
  lhs = std::move(result).value()
