#include "replay/record_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include <xxhash.h>
#if defined(__x86_64__)
#include <xxh_x86dispatch.h>  // XXH3 by the widest vectors that the CPU has: the same numbers
#endif

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/file.h"
#include "base/log.h"
#include "base/strings.h"

namespace quern {

namespace {

constexpr uint64_t kSegmentBytes = uint64_t{256} << 20;
constexpr size_t kChunk = size_t{256} << 10;  // what is handed to the file at once: it stays in the cache till then
constexpr size_t kOpenFiles = 256;
constexpr uint64_t kSegmentMagic = 0x32636572'6e726571;  // "qernrec2"
constexpr uint32_t kFrameMagic = 0x6d617266;             // "fram"
constexpr char kPrefix[] = "records-";
constexpr char kSuffix[] = ".data";

// On disk as here, little-endian.
struct SegmentHeader {
  uint64_t magic;
  uint32_t moved;
  uint32_t segment;
  uint32_t previous;
  uint32_t previous_end;
  uint64_t checksum;  // of what is before it
};
static_assert(sizeof(SegmentHeader) == 32);

struct FrameHeader {
  uint32_t magic;
  uint32_t entries;
  uint64_t entry_bytes;  // of all entries with their headers
  uint64_t trailer_bytes;
  uint64_t trailer_checksum;
  uint64_t checksum;  // of what is before it, seeded with the frame's place
};
static_assert(sizeof(FrameHeader) == 40);

struct EntryHeader {
  uint64_t number;
  uint64_t size;
  uint64_t checksum;  // of the number and the bytes' hash
};
static_assert(sizeof(EntryHeader) == 24);

template <typename T>
uint64_t HeaderChecksum(const T& header, uint64_t seed) {
  return XXH3_64bits_withSeed(&header, sizeof(T) - sizeof(uint64_t), seed);
}

uint64_t EntryChecksum(uint64_t number, uint64_t hash) {
  const uint64_t both[2] = {number, hash};
  return XXH3_64bits(both, sizeof(both));
}

uint64_t FrameSeed(uint32_t segment, uint32_t offset) { return uint64_t{segment} << 32 | offset; }

// False at the end of the file.
Result<bool> ReadAt(int fd, const std::string& path, uint64_t offset, iovec* parts, int count) {
  size_t left = 0;
  for (int i = 0; i < count; ++i) left += parts[i].iov_len;
  while (left > 0) {
    const ssize_t n = preadv(fd, parts, count, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return FromErrno(errno, path);
    if (n == 0) return false;
    left -= static_cast<size_t>(n);
    offset += static_cast<uint64_t>(n);
    for (size_t done = static_cast<size_t>(n); done > 0;) {
      const size_t step = std::min(done, parts->iov_len);
      parts->iov_base = static_cast<char*>(parts->iov_base) + step;
      parts->iov_len -= step;
      done -= step;
      if (parts->iov_len == 0 && count > 1) ++parts, --count;
    }
  }
  return true;
}

}  // namespace

struct RecordLog::Descriptor {
  explicit Descriptor(int opened) : fd(opened) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { close(fd); }
  int fd;
};

uint64_t RecordLog::HashOf(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::string RecordLog::PathOf(uint32_t segment) const {
  return JoinPath(directory_, StrFormat("%s%08u%s", kPrefix, segment, kSuffix));
}

Status RecordLog::Check(const rocksdb::IOStatus& status) const {
  if (status.ok()) return {};
  if (status.IsNoSpace()) return ResourceExhausted(directory_ + ": no space left on the disk: free some and try again");
  return DataLoss(directory_ + ": " + status.ToString());
}

Result<std::shared_ptr<const RecordLog::Descriptor>> RecordLog::DescriptorOf(uint32_t segment) const {
  std::lock_guard lock(mutex_);
  if (const auto found = descriptors_.find(segment); found != descriptors_.end()) return found->second;
  const std::string path = PathOf(segment);
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    if (errno == ENOENT) return DataLoss(path + ": is missing");
    return FromErrno(errno, path);
  }
  if (descriptors_.size() >= kOpenFiles) descriptors_.clear();
  return descriptors_[segment] = std::make_shared<const Descriptor>(fd);
}

Status RecordLog::Open() {
  QUERN_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(directory_));
  for (const std::string& name : names) {
    if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) continue;
    const auto number = static_cast<uint32_t>(std::strtoul(name.c_str() + sizeof(kPrefix) - 1, nullptr, 10));
    newest_ = std::max(newest_, number);
    QUERN_ASSIGN_OR_RETURN(const auto file, DescriptorOf(number));
    struct stat status {};
    if (fstat(file->fd, &status) != 0) return FromErrno(errno, PathOf(number));
    SegmentHeader header{};
    iovec part{&header, sizeof(header)};
    QUERN_ASSIGN_OR_RETURN(const bool whole, ReadAt(file->fd, PathOf(number), 0, &part, 1));
    // Begun and not synced: nothing in it was acknowledged. If records are expected in it, Holds says no.
    if (!whole || header.magic != kSegmentMagic || header.segment != number || header.previous >= number ||
        header.checksum != HeaderChecksum(header, 0)) {
      LogWarning(PathOf(number) + ": has no whole header, it is left alone");
      continue;
    }
    segments_[number] = {.size = static_cast<uint64_t>(status.st_size),
                         .moved = header.moved != 0,
                         .previous = header.previous,
                         .previous_end = header.previous_end};
  }
  // What follows a segment's end was never acknowledged.
  for (const auto& [number, segment] : segments_) {
    const auto before = segments_.find(segment.previous);
    if (segment.moved || segment.previous == 0 || before == segments_.end()) continue;
    if (before->second.size < segment.previous_end)
      return DataLoss(StrCat(PathOf(segment.previous), ": ends at byte ", before->second.size, " instead of ",
                             segment.previous_end));
    before->second.size = segment.previous_end;
  }
  return {};
}

void RecordLog::Seal() {
  for (Writer* writer : {&log_, &moves_}) {
    if (writer->file != nullptr) (void)writer->file->Close(rocksdb::IOOptions(), nullptr);
    writer->file.reset();
  }
}

Status RecordLog::OpenSegment(bool moved, Writer* writer) {
  const uint32_t number = newest_ + 1;
  const std::string path = PathOf(number);
  std::unique_ptr<rocksdb::FSWritableFile> file;
  newest_ = number;  // also when it fails: a number is never used twice
  QUERN_RETURN_IF_ERROR(Check(files_->NewWritableFile(path, rocksdb::FileOptions(), &file, nullptr)));
  SegmentHeader header{.magic = kSegmentMagic,
                       .moved = moved ? 1u : 0u,
                       .segment = number,
                       .previous = moved ? 0 : end_.segment,
                       .previous_end = moved ? 0 : end_.offset,
                       .checksum = 0};
  header.checksum = HeaderChecksum(header, 0);
  const rocksdb::Slice bytes(reinterpret_cast<const char*>(&header), sizeof(header));
  QUERN_RETURN_IF_ERROR(Check(file->Append(bytes, rocksdb::IOOptions(), nullptr)));
  QUERN_RETURN_IF_ERROR(Check(file->Sync(rocksdb::IOOptions(), nullptr)));
  std::unique_ptr<rocksdb::FSDirectory> folder;
  QUERN_RETURN_IF_ERROR(Check(files_->NewDirectory(directory_, rocksdb::IOOptions(), &folder, nullptr)));
  QUERN_RETURN_IF_ERROR(
      Check(folder->FsyncWithDirOptions(rocksdb::IOOptions(), nullptr, rocksdb::DirFsyncOptions(path))));
  *writer = {.segment = number, .offset = sizeof(header), .file = std::move(file)};
  std::lock_guard lock(mutex_);
  segments_[number] = {
      .size = sizeof(header), .moved = moved, .previous = header.previous, .previous_end = header.previous_end};
  if (!moved) end_ = {.segment = number, .offset = sizeof(header)};
  return {};
}

Status RecordLog::Begin() {
  Seal();
  return OpenSegment(false, &log_);
}

Status RecordLog::Append(const std::vector<Entry>& entries, std::string_view trailer,
                         std::vector<RecordPlace>* places) {
  return Write(false, entries, trailer, &log_, places);
}

Status RecordLog::Move(const std::vector<Entry>& entries, std::vector<RecordPlace>* places) {
  return Write(true, entries, {}, &moves_, places);
}

Status RecordLog::Write(bool moved, const std::vector<Entry>& entries, std::string_view trailer, Writer* writer,
                        std::vector<RecordPlace>* places) {
  places->clear();
  uint64_t entry_bytes = 0;
  for (const Entry& entry : entries) entry_bytes += sizeof(EntryHeader) + entry.bytes.size();
  if (writer->file != nullptr && writer->offset + entry_bytes > kSegmentBytes && writer->offset > kSegmentBytes / 2) {
    (void)writer->file->Close(rocksdb::IOOptions(), nullptr);
    writer->file.reset();
  }
  if (writer->file == nullptr) QUERN_RETURN_IF_ERROR(OpenSegment(moved, writer));
  if (entry_bytes + trailer.size() > (uint64_t{1} << 31))
    return InvalidArgument(StrCat("a write of ", entry_bytes, " bytes is too large"));

  FrameHeader header{.magic = kFrameMagic,
                     .entries = static_cast<uint32_t>(entries.size()),
                     .entry_bytes = entry_bytes,
                     .trailer_bytes = trailer.size(),
                     .trailer_checksum = XXH3_64bits(trailer.data(), trailer.size()),
                     .checksum = 0};
  header.checksum = HeaderChecksum(header, FrameSeed(writer->segment, writer->offset));
  uint64_t at = writer->offset;
  buffer_.assign(reinterpret_cast<const char*>(&header), sizeof(header));
  rocksdb::IOStatus status;
  const auto flush = [&](size_t least) {
    if (!status.ok() || buffer_.size() < least || buffer_.empty()) return;
    status = writer->file->Append(buffer_, rocksdb::IOOptions(), nullptr);
    at += buffer_.size();
    buffer_.clear();
  };
  for (const Entry& entry : entries) {
    const uint64_t hash = entry.hash != 0 ? entry.hash : HashOf(entry.bytes);
    EntryHeader one{.number = entry.number, .size = entry.bytes.size(), .checksum = EntryChecksum(entry.number, hash)};
    buffer_.append(reinterpret_cast<const char*>(&one), sizeof(one));
    places->push_back({.segment = writer->segment, .offset = static_cast<uint32_t>(at + buffer_.size())});
    buffer_.append(entry.bytes);
    flush(kChunk);
  }
  buffer_.append(trailer);
  flush(1);
  if (status.ok()) status = writer->file->Sync(rocksdb::IOOptions(), nullptr);
  if (!status.ok()) {  // how much of it is there, nobody knows: what comes next goes to another segment
    (void)writer->file->Close(rocksdb::IOOptions(), nullptr);
    writer->file.reset();
    return Check(status);
  }
  writer->offset = static_cast<uint32_t>(at);
  if (!moved) end_ = {.segment = writer->segment, .offset = writer->offset};
  std::lock_guard lock(mutex_);
  segments_[writer->segment].size = at;
  return {};
}

Result<bool> RecordLog::ReadFrame(uint32_t segment, uint32_t offset, uint64_t limit, std::string* buffer,
                                  Frame* frame) const {
  QUERN_ASSIGN_OR_RETURN(const auto file, DescriptorOf(segment));
  const std::string path = PathOf(segment);
  FrameHeader header{};
  if (offset + sizeof(header) > limit) return false;
  iovec part{&header, sizeof(header)};
  QUERN_ASSIGN_OR_RETURN(bool whole, ReadAt(file->fd, path, offset, &part, 1));
  if (!whole || header.magic != kFrameMagic || header.checksum != HeaderChecksum(header, FrameSeed(segment, offset)))
    return false;
  const uint64_t room = limit - offset - sizeof(header);
  if (header.entry_bytes > room || header.trailer_bytes > room - header.entry_bytes) return false;
  const uint64_t size = header.entry_bytes + header.trailer_bytes;
  buffer->resize(size);
  part = {buffer->data(), size};
  QUERN_ASSIGN_OR_RETURN(whole, ReadAt(file->fd, path, offset + sizeof(header), &part, 1));
  if (!whole) return false;
  frame->entries.clear();
  frame->places.clear();
  uint64_t at = 0;
  for (uint32_t i = 0; i < header.entries; ++i) {
    EntryHeader one{};
    if (header.entry_bytes - at < sizeof(one)) return false;
    std::memcpy(&one, buffer->data() + at, sizeof(one));
    at += sizeof(one);
    if (header.entry_bytes - at < one.size) return false;
    const std::string_view bytes(buffer->data() + at, one.size);
    const uint64_t hash = HashOf(bytes);
    if (one.checksum != EntryChecksum(one.number, hash)) return false;
    frame->entries.push_back({.number = one.number, .bytes = bytes, .hash = hash});
    frame->places.push_back({.segment = segment, .offset = static_cast<uint32_t>(offset + sizeof(header) + at)});
    at += one.size;
  }
  frame->trailer = std::string_view(buffer->data() + at, header.trailer_bytes);
  frame->end = {.segment = segment, .offset = static_cast<uint32_t>(offset + sizeof(header) + size)};
  return at == header.entry_bytes &&
         header.trailer_checksum == XXH3_64bits(frame->trailer.data(), frame->trailer.size());
}

Status RecordLog::ScanRange(uint32_t segment, uint32_t offset, uint64_t limit, bool last, const Visitor& visit,
                            uint32_t* end) const {
  std::string buffer;
  Frame frame;
  while (offset < limit) {
    QUERN_ASSIGN_OR_RETURN(const bool whole, ReadFrame(segment, offset, limit, &buffer, &frame));
    if (!whole && last) break;
    if (!whole) return DataLoss(StrCat(PathOf(segment), ": the frame at byte ", offset, " is damaged"));
    QUERN_RETURN_IF_ERROR(visit(frame));
    offset = frame.end.offset;
  }
  if (end != nullptr) *end = offset;
  return {};
}

// The newest segment's header leads back to the one before it, and so on: what is not on this way was begun in vain.
Result<std::vector<uint32_t>> RecordLog::ChainFrom(uint32_t first) const {
  std::lock_guard lock(mutex_);
  std::vector<uint32_t> chain;
  for (auto it = segments_.rbegin(); it != segments_.rend() && chain.empty(); ++it)
    if (!it->second.moved) chain.push_back(it->first);
  while (!chain.empty() && chain.back() != first && segments_.at(chain.back()).previous != 0) {
    const uint32_t previous = segments_.at(chain.back()).previous;
    if (segments_.count(previous) == 0) return DataLoss(PathOf(previous) + ": is missing or damaged");
    chain.push_back(previous);
  }
  if (first != 0 && (chain.empty() || chain.back() != first))
    return DataLoss(PathOf(first) + ": is missing or damaged");
  std::reverse(chain.begin(), chain.end());
  return chain;
}

Status RecordLog::Replay(RecordPlace from, RecordPlace acknowledged, const Visitor& visit) {
  QUERN_ASSIGN_OR_RETURN(const std::vector<uint32_t> chain, ChainFrom(from.segment));
  const bool known = end_.segment != 0;  // a log that was written here: nothing beyond its end counts
  RecordPlace at = from;
  for (const uint32_t segment : chain) {
    const uint64_t size = SegmentBytes(segment);
    const uint32_t offset = segment == from.segment ? from.offset : sizeof(SegmentHeader);
    if (offset > size)
      return DataLoss(StrCat(PathOf(segment), ": ends at byte ", size, ", but was acknowledged to byte ", offset));
    if (!known) {  // what a killed process wrote and did not sync is acknowledged from now on
      QUERN_ASSIGN_OR_RETURN(const auto file, DescriptorOf(segment));
      if (fsync(file->fd) != 0) return FromErrno(errno, PathOf(segment));
    }
    uint32_t end = offset;
    QUERN_RETURN_IF_ERROR(ScanRange(segment, offset, size, segment == chain.back() && !known, visit, &end));
    at = {.segment = segment, .offset = end};
  }
  if (known) return {};
  if (at < acknowledged)
    return DataLoss(StrCat(PathOf(acknowledged.segment), ": was acknowledged to byte ", acknowledged.offset,
                           ", but what is whole ends at byte ", at.offset, " of segment ", at.segment));
  end_ = at;
  std::lock_guard lock(mutex_);
  if (at.segment != 0) segments_[at.segment].size = at.offset;
  return {};
}

Status RecordLog::Scan(uint32_t segment, const Visitor& visit) const {
  bool moved = false;
  {
    std::lock_guard lock(mutex_);
    const auto found = segments_.find(segment);
    moved = found != segments_.end() && found->second.moved;
  }
  // Nothing says where a segment of moved frames ended when a write failed; their records are found by their places.
  return ScanRange(segment, sizeof(SegmentHeader), SegmentBytes(segment), moved, visit, nullptr);
}

Status RecordLog::Read(uint64_t number, RecordPlace place, uint32_t size, std::string* bytes) const {
  const auto damaged = [&](const char* what) {
    return DataLoss(StrCat(PathOf(place.segment), ": record ", number, " at byte ", place.offset, " ", what));
  };
  if (place.segment == 0 || place.offset < sizeof(EntryHeader)) return damaged("has no place");
  QUERN_ASSIGN_OR_RETURN(const auto file, DescriptorOf(place.segment));
  EntryHeader header{};
  bytes->resize(size);
  iovec parts[2] = {{&header, sizeof(header)}, {bytes->data(), size}};
  QUERN_ASSIGN_OR_RETURN(const bool whole,
                         ReadAt(file->fd, PathOf(place.segment), place.offset - sizeof(header), parts, 2));
  if (!whole) return damaged("is cut off");
  if (header.number != number || header.size != size || header.checksum != EntryChecksum(number, HashOf(*bytes)))
    return damaged("is damaged");
  return {};
}

bool RecordLog::Holds(RecordPlace place, uint32_t size) const {
  std::lock_guard lock(mutex_);
  const auto found = segments_.find(place.segment);
  return found != segments_.end() && uint64_t{place.offset} + size <= found->second.size;
}

std::vector<uint32_t> RecordLog::Segments() const {
  std::lock_guard lock(mutex_);
  std::vector<uint32_t> numbers;
  for (const auto& [number, segment] : segments_) numbers.push_back(number);
  return numbers;
}

uint64_t RecordLog::SegmentBytes(uint32_t segment) const {
  std::lock_guard lock(mutex_);
  const auto found = segments_.find(segment);
  return found == segments_.end() ? 0 : found->second.size;
}

// Where a segment ends after a failed write stands in its successor's header: before that goes, what follows the end
// goes.
Status RecordLog::TrimBefore(uint32_t segment) {
  uint32_t previous = 0;
  uint64_t size = 0;
  {
    std::lock_guard lock(mutex_);
    const auto removed = segments_.find(segment);
    const auto before = removed == segments_.end() ? removed : segments_.find(removed->second.previous);
    if (before == segments_.end() || removed->second.moved) return {};
    previous = before->first;
    size = before->second.size;
  }
  QUERN_ASSIGN_OR_RETURN(const auto file, DescriptorOf(previous));
  struct stat status {};
  if (fstat(file->fd, &status) != 0) return FromErrno(errno, PathOf(previous));
  if (static_cast<uint64_t>(status.st_size) <= size) return {};
  if (truncate(PathOf(previous).c_str(), static_cast<off_t>(size)) != 0 || fsync(file->fd) != 0)
    return FromErrno(errno, PathOf(previous));
  return {};
}

Status RecordLog::Remove(uint32_t segment) {
  QUERN_RETURN_IF_ERROR(TrimBefore(segment));
  QUERN_RETURN_IF_ERROR(Check(files_->DeleteFile(PathOf(segment), rocksdb::IOOptions(), nullptr)));
  std::lock_guard lock(mutex_);
  segments_.erase(segment);
  descriptors_.erase(segment);
  return {};
}

}  // namespace quern
