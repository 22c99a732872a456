#include "replay/record_table.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <type_traits>

#include "base/file.h"

namespace quern {

namespace {

constexpr char kRowFormat = 4;
constexpr uint8_t kSuccessBit = 1;
constexpr uint8_t kPrunedBit = 2;

// Little-endian, as all of Quern's platforms are.
template <typename T>
void Put(std::string* out, T value) {
  static_assert(std::is_trivially_copyable_v<T>);
  out->append(reinterpret_cast<const char*>(&value), sizeof(T));
}

void PutString(std::string* out, const std::string& text) {
  Put(out, static_cast<uint16_t>(text.size()));
  *out += text;
}

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  template <typename T>
  T Get() {
    T value{};
    if (bytes_.size() < sizeof(T)) {
      ok_ = false;
      return value;
    }
    std::memcpy(&value, bytes_.data(), sizeof(T));
    bytes_.remove_prefix(sizeof(T));
    return value;
  }
  std::string GetString() {
    const size_t size = Get<uint16_t>();
    if (bytes_.size() < size) ok_ = false;
    if (!ok_) return {};
    std::string text(bytes_.substr(0, size));
    bytes_.remove_prefix(size);
    return text;
  }
  bool Finished() const { return ok_ && bytes_.empty(); }
  bool ok() const { return ok_; }

 private:
  std::string_view bytes_;
  bool ok_ = true;
};

}  // namespace

uint64_t HashTask(std::string_view task) { return task.empty() ? 0 : XXH3_64bits(task.data(), task.size()); }

namespace {
uint64_t HashText(const v1::Trajectory& trajectory) {
  if (trajectory.messages().empty()) return XXH3_64bits(trajectory.token_ids().data(), trajectory.token_ids().size());
  std::string text;
  for (const v1::Message& message : trajectory.messages()) {
    PutString(&text, message.role());
    Put(&text, static_cast<uint64_t>(message.content().size()));
    text += message.content();
  }
  return XXH3_64bits(text.data(), text.size());
}

// What stays of a uid when its run has another name: jobs of one seed draw the same records in any directory.
std::string_view WithoutRun(const v1::Trajectory& trajectory) {
  std::string_view uid = trajectory.uid();
  const std::string& run = trajectory.run();
  if (!run.empty() && uid.size() > run.size() && uid.starts_with(run) && uid[run.size()] == '/') {
    uid.remove_prefix(run.size() + 1);
  }
  return uid;
}
}  // namespace

StoredRow MakeRow(const v1::Trajectory& trajectory, size_t bytes) {
  StoredRow stored;
  const std::string_view name = WithoutRun(trajectory);
  const XXH128_hash_t uid = XXH3_128bits(name.data(), name.size());
  uint64_t version = 0;
  for (const v1::PolicyVersion& policy : trajectory.policies()) version = std::max<uint64_t>(version, policy.version());
  stored.row = {.uid_high = uid.high64,
                .uid_low = uid.low64,
                .version = version,
                .task_hash = HashTask(trajectory.task()),
                .text_hash = HashText(trajectory),
                .episode_return = trajectory.episode_return(),
                .created_unix_ms = trajectory.created_unix_ms(),
                .tokens = static_cast<uint32_t>(trajectory.token_ids().size() / 4),
                .bytes = static_cast<uint32_t>(bytes),
                .depth = trajectory.generation_depth(),
                .guideline = trajectory.chain().guideline(),
                .run = 0,
                .tag_set = 0,
                .place = {},
                .source = trajectory.source(),
                .verdict = trajectory.verdict(),
                .success = trajectory.success(),
                .pruned = false};
  stored.run = trajectory.run();
  stored.tags.assign(trajectory.tags().begin(), trajectory.tags().end());
  std::sort(stored.tags.begin(), stored.tags.end());
  stored.tags.erase(std::unique(stored.tags.begin(), stored.tags.end()), stored.tags.end());
  return stored;
}

std::string EncodeRow(const StoredRow& stored) {
  const RecordRow& row = stored.row;
  std::string out(1, kRowFormat);
  Put(&out, row.uid_high);
  Put(&out, row.uid_low);
  Put(&out, row.version);
  Put(&out, row.task_hash);
  Put(&out, row.text_hash);
  Put(&out, row.episode_return);
  Put(&out, row.tokens);
  Put(&out, row.bytes);
  Put(&out, row.depth);
  Put(&out, row.guideline);
  Put(&out, row.created_unix_ms);
  Put(&out, row.place.segment);
  Put(&out, row.place.offset);
  Put(&out, static_cast<uint8_t>(row.source));
  Put(&out, static_cast<uint8_t>(row.verdict));
  Put(&out, static_cast<uint8_t>((row.success ? kSuccessBit : 0) | (row.pruned ? kPrunedBit : 0)));
  PutString(&out, stored.run);
  Put(&out, static_cast<uint16_t>(stored.tags.size()));
  for (const std::string& tag : stored.tags) PutString(&out, tag);
  return out;
}

bool DecodeRow(std::string_view bytes, StoredRow* stored) {
  Reader in(bytes);
  if (in.Get<char>() != kRowFormat) return false;
  RecordRow& row = stored->row;
  row.uid_high = in.Get<uint64_t>();
  row.uid_low = in.Get<uint64_t>();
  row.version = in.Get<uint64_t>();
  row.task_hash = in.Get<uint64_t>();
  row.text_hash = in.Get<uint64_t>();
  row.episode_return = in.Get<double>();
  row.tokens = in.Get<uint32_t>();
  row.bytes = in.Get<uint32_t>();
  row.depth = in.Get<uint32_t>();
  row.guideline = in.Get<uint32_t>();
  row.created_unix_ms = in.Get<int64_t>();
  row.place.segment = in.Get<uint32_t>();
  row.place.offset = in.Get<uint32_t>();
  row.source = static_cast<v1::Source>(in.Get<uint8_t>());
  row.verdict = static_cast<v1::Verdict>(in.Get<uint8_t>());
  const uint8_t bits = in.Get<uint8_t>();
  row.success = (bits & kSuccessBit) != 0;
  row.pruned = (bits & kPrunedBit) != 0;
  stored->run = in.GetString();
  const size_t tags = in.Get<uint16_t>();
  stored->tags.clear();
  for (size_t i = 0; i < tags && in.ok(); ++i) stored->tags.push_back(in.GetString());
  return in.Finished() && v1::Source_IsValid(row.source) && v1::Verdict_IsValid(row.verdict);
}

RecordTable::RecordTable() { Intern(""); }

uint32_t RecordTable::Intern(const std::string& name) {
  const auto [found, added] = name_ids_.try_emplace(name, static_cast<uint32_t>(names_.size()));
  if (added) names_.push_back(name);
  return found->second;
}

uint32_t RecordTable::FindName(const std::string& name) const {
  const auto found = name_ids_.find(name);
  return found == name_ids_.end() ? kNoName : found->second;
}

void RecordTable::Append(const StoredRow& stored) {
  RecordRow row = stored.row;
  row.run = Intern(stored.run);
  std::vector<uint32_t> tags;
  for (const std::string& tag : stored.tags) tags.push_back(Intern(tag));
  std::sort(tags.begin(), tags.end());
  const auto [found, added] = tag_set_ids_.try_emplace(tags, static_cast<uint32_t>(tag_sets_.size()));
  if (added) tag_sets_.push_back(std::move(tags));
  row.tag_set = found->second;
  if (newest_ % kChunk == 0) chunks_.push_back(std::make_unique<RecordRow[]>(kChunk));
  ++newest_;
  Row(newest_) = row;
}

bool RecordTable::Before(uint64_t a, uint64_t b) const {
  const RecordRow& x = row(a);
  const RecordRow& y = row(b);
  if (x.uid_high != y.uid_high) return x.uid_high < y.uid_high;
  if (x.uid_low != y.uid_low) return x.uid_low < y.uid_low;
  if (x.run != y.run) return name(x.run) < name(y.run);
  return a < b;
}

namespace {

struct TableHeader {
  uint64_t magic = 0x6e72'6561'7462'6c31;
  uint64_t row_bytes = sizeof(RecordRow) | uint64_t{kRowFormat} << 32;
  uint64_t rows = 0;
  uint64_t texts_bytes = 0;
  uint64_t checksum = 0;  // of what is before it, and of all that follows
};
static_assert(std::is_trivially_copyable_v<RecordRow>);

}  // namespace

Status RecordTable::SaveTo(const std::string& path) const {
  std::string texts;
  Put(&texts, static_cast<uint32_t>(names_.size()));
  for (const std::string& text : names_) PutString(&texts, text);
  Put(&texts, static_cast<uint32_t>(tag_sets_.size()));
  for (const std::vector<uint32_t>& tags : tag_sets_) {
    Put(&texts, static_cast<uint16_t>(tags.size()));
    for (const uint32_t tag : tags) Put(&texts, tag);
  }
  const auto each_part = [&](const auto& visit) -> Status {
    for (uint64_t done = 0; done < newest_; done += kChunk)
      QUERN_RETURN_IF_ERROR(visit(chunks_[done / kChunk].get(), std::min(kChunk, newest_ - done) * sizeof(RecordRow)));
    return visit(texts.data(), texts.size());
  };
  TableHeader header{.rows = newest_, .texts_bytes = texts.size()};
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> hash(XXH3_createState(), XXH3_freeState);
  XXH3_64bits_reset(hash.get());
  XXH3_64bits_update(hash.get(), &header, sizeof(header) - sizeof(header.checksum));
  QUERN_RETURN_IF_ERROR(each_part([&](const void* data, size_t size) -> Status {
    XXH3_64bits_update(hash.get(), data, size);
    return {};
  }));
  header.checksum = XXH3_64bits_digest(hash.get());
  return WriteFileAtomic(path, [&](const WriteSink& sink) -> Status {
    QUERN_RETURN_IF_ERROR(sink(&header, sizeof(header)));
    return each_part(sink);
  });
}

bool RecordTable::LoadFrom(const std::string& path) {
  Clear();
  const Result<MappedFile> file = PathExists(path) ? MappedFile::Open(path) : Result<MappedFile>(NotFound(path));
  if (!file.ok()) return false;
  const std::span<const uint8_t> bytes = file->bytes();
  TableHeader header;
  const uint64_t row_bytes = header.row_bytes;
  const uint64_t magic = header.magic;
  if (bytes.size() < sizeof(header)) return false;
  std::memcpy(&header, bytes.data(), sizeof(header));
  const std::span<const uint8_t> body = bytes.subspan(sizeof(header));
  if (header.magic != magic || header.row_bytes != row_bytes || header.rows > body.size() / sizeof(RecordRow) ||
      header.texts_bytes != body.size() - header.rows * sizeof(RecordRow))
    return false;
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> hash(XXH3_createState(), XXH3_freeState);
  XXH3_64bits_reset(hash.get());
  XXH3_64bits_update(hash.get(), &header, sizeof(header) - sizeof(header.checksum));
  XXH3_64bits_update(hash.get(), body.data(), body.size());
  if (header.checksum != XXH3_64bits_digest(hash.get())) return false;
  const uint8_t* rows = body.data();
  for (uint64_t done = 0; done < header.rows; done += kChunk) {
    const uint64_t count = std::min(kChunk, header.rows - done);
    chunks_.push_back(std::make_unique_for_overwrite<RecordRow[]>(kChunk));
    std::memcpy(static_cast<void*>(chunks_.back().get()), rows, count * sizeof(RecordRow));
    rows += count * sizeof(RecordRow);
  }
  newest_ = header.rows;
  Reader in(std::string_view(reinterpret_cast<const char*>(rows), header.texts_bytes));
  for (uint32_t n = in.Get<uint32_t>(); n > 0 && in.ok(); --n) Intern(in.GetString());
  for (uint32_t n = in.Get<uint32_t>(); n > 0 && in.ok(); --n) {
    std::vector<uint32_t> tags(in.Get<uint16_t>());
    for (uint32_t& tag : tags) tag = in.Get<uint32_t>();
    tag_set_ids_[tags] = static_cast<uint32_t>(tag_sets_.size());
    tag_sets_.push_back(std::move(tags));
  }
  bool whole = in.Finished();
  for (uint64_t number = 1; whole && number <= newest_; ++number)
    whole = row(number).run < names_.size() && row(number).tag_set < tag_sets_.size();
  for (const std::vector<uint32_t>& tags : tag_sets_)
    for (const uint32_t tag : tags) whole = whole && tag < names_.size();
  if (!whole) Clear();
  return whole;
}

}  // namespace quern
