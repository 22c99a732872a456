#include "replay/writer.h"

#include <algorithm>
#include <utility>

#include "base/strings.h"
#include "replay/ledger.h"

namespace quern {

namespace {

constexpr size_t kRequestBytes = size_t{48} << 20;

}  // namespace

Result<std::unique_ptr<ReplayWriter>> ReplayWriter::Open(Replay* replay, const std::string& name, Deadline deadline) {
  v1::OpenWriterRequest request;
  request.set_writer(name);
  QUERN_ASSIGN_OR_RETURN(const v1::OpenWriterReply opened, replay->OpenWriter(request, deadline));
  return std::unique_ptr<ReplayWriter>(new ReplayWriter(replay, name, opened));
}

ReplayWriter::ReplayWriter(Replay* replay, std::string name, const v1::OpenWriterReply& opened)
    : replay_(replay),
      name_(std::move(name)),
      epoch_(opened.epoch()),
      next_(opened.next_sequence()),
      ledger_(opened.ledger()),
      window_(std::max<size_t>(1, opened.window())) {}

void ReplayWriter::Append(std::string bytes, std::string uid) { spool_.push_back({std::move(bytes), std::move(uid)}); }

Status ReplayWriter::Flush(Deadline deadline) {
  while (!spool_.empty()) {
    v1::InsertRequest request;
    request.set_writer(name_);
    request.set_epoch(epoch_);
    request.set_first_sequence(next_);
    size_t bytes = 0;
    size_t count = 0;
    while (count < std::min(spool_.size(), window_) &&
           (count == 0 || bytes + spool_[count].bytes.size() < kRequestBytes)) {
      bytes += spool_[count].bytes.size();
      request.add_trajectories(spool_[count++].bytes);
    }
    QUERN_ASSIGN_OR_RETURN(const v1::InsertReply reply, replay_->Insert(request, deadline));
    if (reply.gap() || reply.next_sequence() != next_ + count)
      return DataLoss(StrCat("writer '", name_, "': the store goes on at record ", reply.next_sequence(),
                             " instead of ", next_ + count,
                             ": it is not the store that acknowledged the records before"));
    duplicates_ += reply.duplicates();
    next_ += count;
    for (; count > 0; --count) {
      ledger_ = ExtendLedger(ledger_, spool_.front().uid);
      spool_.pop_front();
    }
  }
  return {};
}

}  // namespace quern
