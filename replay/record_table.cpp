#include "replay/record_table.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <type_traits>

#include "base/check.h"
#include "base/file.h"

namespace quern {

namespace {

constexpr uint64_t kFileMagic = 0x32776f72'6e726571;  // "qernrow2"

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

std::string PromptOf(const v1::Trajectory& trajectory) {
  std::string prompt;
  if (trajectory.messages().empty()) prompt = trajectory.task();
  for (const v1::Message& message : trajectory.messages()) {
    if (message.role() == "assistant") break;
    prompt += (prompt.empty() ? "" : "\n") + message.content();
  }
  prompt.resize(prompt.find_last_not_of(" \t\r\n") + 1);
  return prompt;
}

uint16_t HashPrompt(std::string_view prompt) {
  return static_cast<uint16_t>(std::max<uint64_t>(1, XXH3_64bits(prompt.data(), prompt.size()) & 0xffff));
}

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
  const XXH128_hash_t uid = XXH3_128bits(trajectory.uid().data(), trajectory.uid().size());
  uint64_t version = 0;
  for (const v1::PolicyVersion& policy : trajectory.policies()) version = std::max<uint64_t>(version, policy.version());
  stored.row = {.order = XXH3_128bits(name.data(), name.size()).high64,
                .uid_high = uid.high64,
                .uid_low = uid.low64,
                .task_hash = HashTask(trajectory.task()),
                .text_hash = HashText(trajectory),
                .episode_return = trajectory.episode_return(),
                .created_unix_ms = trajectory.created_unix_ms(),
                .place = {},
                .tokens = static_cast<uint32_t>(trajectory.token_ids().size() / 4),
                .bytes = static_cast<uint32_t>(bytes),
                .kind = 0,
                .success = trajectory.success(),
                .pruned = false,
                .prompt = HashPrompt(PromptOf(trajectory))};
  stored.kind = {.run = 0,
                 .tag_set = 0,
                 .version = version,
                 .depth = trajectory.generation_depth(),
                 .guideline = trajectory.chain().guideline(),
                 .source = trajectory.source(),
                 .verdict = trajectory.verdict()};
  stored.run = trajectory.run();
  stored.tags.assign(trajectory.tags().begin(), trajectory.tags().end());
  std::sort(stored.tags.begin(), stored.tags.end());
  stored.tags.erase(std::unique(stored.tags.begin(), stored.tags.end()), stored.tags.end());
  return stored;
}

RecordTable::RecordTable() { Intern(""); }

uint32_t RecordTable::Intern(const std::string& name) {
  const auto [found, added] = name_ids_.try_emplace(name, static_cast<uint32_t>(names_.size()));
  if (added) names_.push_back(name);
  return found->second;
}

uint32_t RecordTable::InternTags(const std::vector<std::string>& tags) {
  std::vector<uint32_t> ids;
  for (const std::string& tag : tags) ids.push_back(Intern(tag));
  std::sort(ids.begin(), ids.end());
  const auto [found, added] = tag_set_ids_.try_emplace(ids, static_cast<uint32_t>(tag_sets_.size()));
  if (added) tag_sets_.push_back(std::move(ids));
  return found->second;
}

uint32_t RecordTable::InternKind(const RecordKind& kind) {
  const auto [found, added] = kind_ids_.try_emplace(kind, static_cast<uint32_t>(kinds_.size()));
  if (added) kinds_.push_back(kind);
  return found->second;
}

uint32_t RecordTable::FindName(const std::string& name) const {
  const auto found = name_ids_.find(name);
  return found == name_ids_.end() ? kNoName : found->second;
}

void RecordTable::Append(const StoredRow& stored) {
  RecordKind kind = stored.kind;
  kind.run = Intern(stored.run);
  kind.tag_set = InternTags(stored.tags);
  RecordRow row = stored.row;
  row.kind = InternKind(kind);
  AppendRow(row);
}

void RecordTable::AppendRow(const RecordRow& row) {
  QUERN_CHECK(newest_ < kMostRows);
  if (newest_ % kChunk == 0) chunks_.push_back(std::make_unique<RecordRow[]>(kChunk));
  const bool first = newest_ % kZoneRows == 0;
  if (first) zones_.push_back(std::make_unique<Zone>());
  ++newest_;
  Row(newest_) = row;
  zones_.back()->Add(row, first);
  uids_.Add(row.uid_low, static_cast<uint32_t>(newest_));
}

uint64_t RecordTable::Find(uint64_t uid_high, uint64_t uid_low) const {
  return uids_.Find(
      uid_low, [&](uint32_t number) { return row(number).uid_low == uid_low && row(number).uid_high == uid_high; });
}

uint64_t RecordTable::Find(std::string_view uid) const {
  const XXH128_hash_t hash = XXH3_128bits(uid.data(), uid.size());
  return Find(hash.high64, hash.low64);
}

bool RecordTable::Agrees(uint64_t number, const StoredRow& stored) const {
  const RecordRow& mine = row(number);
  const RecordKind& kind = kinds_[mine.kind];
  RecordKind expected = stored.kind;
  expected.run = kind.run;
  expected.tag_set = kind.tag_set;
  std::vector<std::string> tags;
  for (const uint32_t tag : tag_sets_[kind.tag_set]) tags.push_back(names_[tag]);
  std::sort(tags.begin(), tags.end());
  return kind == expected && names_[kind.run] == stored.run && tags == stored.tags && mine.order == stored.row.order &&
         mine.uid_high == stored.row.uid_high && mine.uid_low == stored.row.uid_low &&
         mine.task_hash == stored.row.task_hash && mine.text_hash == stored.row.text_hash &&
         mine.episode_return == stored.row.episode_return && mine.created_unix_ms == stored.row.created_unix_ms &&
         mine.tokens == stored.row.tokens && mine.bytes == stored.row.bytes && mine.success == stored.row.success &&
         (mine.prompt == stored.row.prompt || mine.prompt == 0);
}

bool RecordTable::Before(uint64_t a, uint64_t b) const {
  const RecordRow& x = row(a);
  const RecordRow& y = row(b);
  if (x.order != y.order) return x.order < y.order;
  const uint32_t run_x = kinds_[x.kind].run;
  const uint32_t run_y = kinds_[y.kind].run;
  if (run_x != run_y) return names_[run_x] < names_[run_y];
  if (x.uid_high != y.uid_high) return x.uid_high < y.uid_high;
  return x.uid_low != y.uid_low ? x.uid_low < y.uid_low : a < b;
}

namespace {

// Four bits a task.
template <typename Function>
bool AllBits(uint64_t task_hash, const Function& bit) {
  const auto step = static_cast<uint32_t>(task_hash >> 32);
  auto at = static_cast<uint32_t>(task_hash);
  for (int i = 0; i < 4; ++i, at += step)
    if (!bit(at >> 6 & 511, uint64_t{1} << (at & 63))) return false;
  return true;
}

}  // namespace

bool RecordTable::Zone::MayHaveTask(uint64_t task_hash) const {
  return AllBits(task_hash, [&](uint32_t word, uint64_t bit) { return (tasks[word] & bit) != 0; });
}

bool RecordTable::Zone::MayHavePrompt(uint16_t prompt) const {
  const auto has = [this](uint16_t value) { return (prompts[value >> 6] >> (value & 63) & 1) != 0; };
  return has(prompt) || has(0);
}

void RecordTable::Zone::Add(const RecordRow& row, bool first) {
  min_return = first ? row.episode_return : std::min(min_return, row.episode_return);
  max_return = first ? row.episode_return : std::max(max_return, row.episode_return);
  if (kinds.empty() || (kinds.back() != row.kind && std::find(kinds.begin(), kinds.end(), row.kind) == kinds.end()))
    kinds.push_back(row.kind);
  AllBits(row.task_hash, [&](uint32_t word, uint64_t bit) {
    tasks[word] |= bit;
    return true;
  });
  prompts[row.prompt >> 6] |= uint64_t{1} << (row.prompt & 63);
}

namespace {

// A file of rows: this, the rows, the kinds that they name by place in it.
struct FileHeader {
  uint64_t magic = kFileMagic;
  uint64_t row_bytes = sizeof(RecordRow);
  uint64_t first = 0;
  uint64_t rows = 0;
  uint64_t kinds_bytes = 0;
  RecordPlace end;
  uint64_t checksum = 0;  // of what is before it, and of all that follows
};
static_assert(std::is_trivially_copyable_v<RecordRow>);

uint64_t ChecksumOf(const FileHeader& header, std::span<const uint8_t> body) {
  const std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> hash(XXH3_createState(), XXH3_freeState);
  XXH3_64bits_reset(hash.get());
  XXH3_64bits_update(hash.get(), &header, sizeof(header) - sizeof(header.checksum));
  XXH3_64bits_update(hash.get(), body.data(), body.size());
  return XXH3_64bits_digest(hash.get());
}

}  // namespace

std::string RecordTable::EncodeRows(uint64_t first, uint64_t last, RecordPlace end) const {
  FileHeader header{.first = first, .rows = last + 1 - first, .end = end};
  std::string file(sizeof(header) + header.rows * sizeof(RecordRow), '\0');
  std::string kinds;
  std::unordered_map<uint32_t, uint32_t> local;
  for (uint64_t number = first; number <= last; ++number) {
    RecordRow copy = row(number);
    const auto [found, added] = local.try_emplace(copy.kind, static_cast<uint32_t>(local.size()));
    if (added) {
      const RecordKind& kind = kinds_[copy.kind];
      PutString(&kinds, names_[kind.run]);
      Put(&kinds, static_cast<uint16_t>(tag_sets_[kind.tag_set].size()));
      for (const uint32_t tag : tag_sets_[kind.tag_set]) PutString(&kinds, names_[tag]);
      Put(&kinds, kind.version);
      Put(&kinds, kind.depth);
      Put(&kinds, kind.guideline);
      Put(&kinds, static_cast<uint8_t>(kind.source));
      Put(&kinds, static_cast<uint8_t>(kind.verdict));
    }
    copy.kind = found->second;
    std::memcpy(file.data() + sizeof(header) + (number - first) * sizeof(RecordRow), &copy, sizeof(copy));
  }
  header.kinds_bytes = kinds.size();
  file += kinds;
  header.checksum = ChecksumOf(
      header, {reinterpret_cast<const uint8_t*>(file.data()) + sizeof(header), file.size() - sizeof(header)});
  std::memcpy(file.data(), &header, sizeof(header));
  return file;
}

bool RecordTable::LoadRows(const std::string& path, RecordPlace* end) {
  const Result<MappedFile> file = MappedFile::Open(path);
  if (!file.ok()) return false;
  FileHeader header;
  if (file->bytes().size() < sizeof(header)) return false;
  std::memcpy(&header, file->bytes().data(), sizeof(header));
  const std::span<const uint8_t> body = file->bytes().subspan(sizeof(header));
  if (header.magic != kFileMagic || header.row_bytes != sizeof(RecordRow) || header.first != newest_ + 1 ||
      header.rows > body.size() / sizeof(RecordRow) ||
      header.kinds_bytes != body.size() - header.rows * sizeof(RecordRow) ||
      header.checksum != ChecksumOf(header, body))
    return false;
  const size_t rows_bytes = header.rows * sizeof(RecordRow);
  Reader in(std::string_view(reinterpret_cast<const char*>(body.data()) + rows_bytes, header.kinds_bytes));
  std::vector<uint32_t> ids;
  while (in.ok() && !in.Finished()) {
    RecordKind kind;
    kind.run = Intern(in.GetString());
    std::vector<std::string> tags(in.Get<uint16_t>());
    for (std::string& tag : tags) tag = in.GetString();
    kind.tag_set = InternTags(tags);
    kind.version = in.Get<uint64_t>();
    kind.depth = in.Get<uint32_t>();
    kind.guideline = in.Get<uint32_t>();
    kind.source = static_cast<v1::Source>(in.Get<uint8_t>());
    kind.verdict = static_cast<v1::Verdict>(in.Get<uint8_t>());
    ids.push_back(InternKind(kind));
  }
  if (!in.ok()) return false;
  RecordRow row;
  const auto read = [&](uint64_t i) {
    std::memcpy(static_cast<void*>(&row), body.data() + i * sizeof(row), sizeof(row));
    return row.kind < ids.size();
  };
  for (uint64_t i = 0; i < header.rows; ++i)
    if (!read(i)) return false;
  for (uint64_t i = 0; i < header.rows && read(i); ++i) {
    row.kind = ids[row.kind];
    AppendRow(row);
  }
  *end = header.end;
  return true;
}

}  // namespace quern
