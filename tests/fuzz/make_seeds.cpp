// Writes what fuzzing begins with into FOLDER/TARGET/: inputs that the decoders accept.
#include <rocksdb/file_system.h>

#include <cstring>
#include <map>

#include "base/file.h"
#include "base/strings.h"
#include "proto/coordinator.pb.h"
#include "proto/replay.pb.h"
#include "replay/record_log.h"
#include "replay/record_table.h"

namespace quern {
namespace {

v1::Trajectory Record() {
  v1::Trajectory t;
  t.set_uid("u1");
  std::string ids, mask, log_probs;
  for (int32_t i = 0; i < 6; ++i) {
    const float log_prob = -0.5f;
    ids.append(reinterpret_cast<const char*>(&i), 4);
    mask.push_back(i >= 3 ? '\1' : '\0');
    log_probs.append(reinterpret_cast<const char*>(&log_prob), 4);
  }
  t.set_token_ids(ids);
  t.set_loss_mask(mask);
  t.set_log_probs(log_probs);
  v1::Turn& turn = *t.add_turns();
  turn.set_begin(3);
  turn.set_end(6);
  turn.set_reward(1);
  t.set_episode_return(1);
  t.set_done(true);
  t.set_source(v1::SOURCE_GENERATED);
  v1::PolicyVersion& policy = *t.add_policies();
  policy.set_name("sft");
  policy.set_version(1);
  policy.set_content_hash(std::string(32, 'a'));
  t.add_tags("online");
  return t;
}

// A log of two segments and a table, as a store writes them.
void StoreFiles(const std::string& folder, std::map<std::string, std::string>* seeds) {
  QUERN_CHECK(MakeDirectories(folder).ok());
  RecordTable table;
  std::string sizes = std::string("\1\0\0", 3), files;
  {
    RecordLog log(folder, rocksdb::FileSystem::Default().get());
    QUERN_CHECK(log.Open().ok());
    const v1::Trajectory record = Record();
    const std::string bytes = record.SerializeAsString();
    std::vector<RecordPlace> places;
    for (uint64_t frame = 0; frame < 2; ++frame) {
      const uint64_t first = 2 * frame + 1;
      QUERN_CHECK(log.Append({{first, bytes, RecordLog::HashOf(bytes)}, {first + 1, "ab", RecordLog::HashOf("ab")}},
                             "trailer", &places)
                      .ok());
      table.Append(MakeRow(record, bytes.size()));
      log.Seal();
    }
    for (const uint32_t segment : log.Segments()) {
      if (segment == 2) {
        sizes[1] = static_cast<char>(files.size() & 0xff);
        sizes[2] = static_cast<char>(files.size() >> 8);
      }
      files += *ReadFile(log.PathOf(segment));
    }
  }
  (*seeds)["record_log_fuzz/log"] = sizes + files;
  (*seeds)["record_log_fuzz/table"] = std::string("\5\0\0", 3) + table.EncodeRows(1, table.newest(), {1, 2});
  QUERN_CHECK(RemoveTree(folder).ok());
}

std::map<std::string, std::string> Seeds() {
  std::map<std::string, std::string> seeds;
  const v1::Trajectory record = Record();
  seeds["record_fuzz/record"] = record.SerializeAsString();
  v1::InsertRequest insert;
  insert.add_trajectories(record.SerializeAsString());
  seeds["insert_fuzz/plain"] = insert.SerializeAsString();
  v1::InsertRequest written = insert;
  written.set_writer("w");
  written.set_epoch(1);
  written.set_first_sequence(1);
  seeds["insert_fuzz/written"] = written.SerializeAsString();
  seeds["rpc_fuzz/insert"] = '\x0a' + insert.SerializeAsString();
  v1::HeartbeatRequest heartbeat;
  heartbeat.set_role("actor");
  (*heartbeat.mutable_gauges())["episodes"] = 3;
  seeds["rpc_fuzz/heartbeat"] = '\x01' + heartbeat.SerializeAsString();
  v1::PublishRequest publish;
  publish.mutable_weights()->set_name("sft");
  publish.mutable_weights()->set_path("/p");
  seeds["rpc_fuzz/publish"] = '\x06' + publish.SerializeAsString();
  v1::RolloutTask task;
  task.mutable_program()->add_stages()->set_name("plan");
  *task.mutable_policy()->add_weights() = publish.weights();
  seeds["rpc_fuzz/task"] = '\x12' + task.SerializeAsString();
  v1::OpenWeightsReply ticket;
  for (const auto& [name, bytes] : {std::pair("config.json", 5), {"empty.txt", 0}, {"model.safetensors", 40}}) {
    v1::WeightFile& file = *ticket.add_files();
    file.set_name(name);
    file.set_bytes(static_cast<uint64_t>(bytes));
  }
  ticket.set_port(1);
  ticket.set_secret(std::string(16, 's'));
  ticket.set_key(std::string(32, 'k'));
  ticket.set_chunk_bytes(16);
  const std::string weights = ticket.SerializeAsString();
  for (const char how : {1, 3, 7})
    seeds[StrCat("weight_fetch_fuzz/", int{how})] =
        std::string{how, static_cast<char>(weights.size()), '\0'} + weights + "some bytes of a model";
  seeds["rpc_fuzz/ticket"] = '\x15' + weights;
  const auto key = [](char c) { return std::string(32, c); };
  seeds["join_fuzz/body"] = "x" + key('c') + key('r') + key('a') + "tcp://10.0.0.1:4000";
  seeds["join_fuzz/text"] = "qjoin100112233445566778899aabbccddeeff\n";
  seeds["http_fuzz/get"] = "GET /a?b=c HTTP/1.1\r\nHost: localhost\r\n\r\n";
  seeds["http_fuzz/post"] =
      "POST /stream HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\nContent-Type: text/plain\r\n\r\nabc";
  seeds["http_fuzz/chunked"] =
      "POST /b HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\nExpect: "
      "100-continue\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
      "GET / HTTP/1.0\r\n\r\n";
  seeds["openai_fuzz/completion"] =
      "\x02{\"model\": \"m\", \"prompt\": [\"abc\", \"d\"], \"max_tokens\": 5, \"n\": 2, \"stop\": [\"x\"], "
      "\"temperature\": 0.5, \"logprobs\": 3, \"seed\": 1, \"stream\": true}";
  seeds["openai_fuzz/ids"] = "\x02{\"prompt\": [[1, 2, 3], [4]], \"top_k\": 3, \"stop_token_ids\": [1]}";
  seeds["openai_fuzz/chat"] =
      "\x03{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"hi\"}]}], \"tools\": "
      "[]}";
  seeds["job_fuzz/job"] =
      "name: tiny\nmodel: {config: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 4}}\n"
      "environment: {name: wordle}\ndata:\n  collect:\n    - {player: random, episodes: 60}\ncompare: [sft]\n"
      "online: {rounds: 1, episodes: 24}\nmixture: {policy: scheduled, schedule: [{at: 0, share: 0.5}]}\n"
      "require: [{better: q_sft, than: sft}]\n";
  seeds["job_fuzz/regenesis"] =
      "name: r\nmethod: regenesis\nmodel_name_or_path: /m\nenvironment: {name: digits}\nregenesis: {rounds: 2, adapt: "
      "{temperature: 0.5}}\nevaluate: {sets: [{name: a, episodes: 3}]}\n";
  seeds["import_fuzz/messages"] =
      "\x02{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}], "
      "\"rewards\": [1], \"done\": true, \"x\": [1]}";
  seeds["import_fuzz/prompt"] = "\x03{\"prompt\": \"q\", \"completion\": \"a\", \"reward\": 0.5}";
  seeds["import_fuzz/lmrl"] =
      "\x04{\"sequence\": [[\"q\", 0.0], [\"a\", 1.0]], \"reward\": [0.0, 1.0], \"done\": true}";
  seeds["import_fuzz/dialogue"] = "\x04{\"conversation\": [\"Is it? Yes.\"], \"done\": true, \"word\": \"w\"}";
  seeds["import_fuzz/plain"] = "\x05{\"question\": \"1+1\", \"answer\": \"2 #### 2\", \"id\": 3}";
  seeds["import_fuzz/gsm8k"] = "\x06{\"question\": \"q\", \"answer\": \"w <<1+1=2>>2\\n#### 2\"}";
  seeds["import_fuzz/svamp"] =
      "\x07[{\"ID\": \"c\", \"Body\": \"b\", \"Question\": \"q\", \"Equation\": \"( 1 + 1 )\", \"Answer\": 2}]";
  seeds["import_fuzz/aqua"] =
      "\x08{\"question\": \"q\", \"options\": [\"A)1\", \"B)2\"], \"rationale\": \"r\", \"correct\": \"B\"}";
  seeds["import_fuzz/strategyqa"] = "\x09[{\"qid\": \"c\", \"question\": \"q\", \"answer\": true, \"facts\": [\"f\"]}]";
  seeds["import_fuzz/arc"] =
      "\x0a{\"id\": \"i\", \"question\": {\"stem\": \"s\", \"choices\": [{\"text\": \"t\", \"label\": \"A\"}]}, "
      "\"answerKey\": \"A\"}";
  seeds["import_fuzz/sums"] =
      "\x0b"
      "54+87=141\n1+1=2\n";
  seeds["import_fuzz/game24"] = "\x0cRank,Puzzles,x\n1,1 1 4 6,9\n";
  seeds["checkpoint_fuzz/manifest"] =
      std::string(
          "{\"format\": 1, \"stage_key\": \"key\", \"step\": 3, \"state\": {}, \"files\": {\"a\": {\"bytes\": 16, "
          "\"xxh3\": \"0\"}}}\n\xff") +
      std::string(16, 'a');
  seeds["journal_fuzz/journal"] =
      "{\"time\": 1.5, \"event\": \"attempt\"}\n"
      "{\"time\": 2, \"event\": \"stage_started\", \"stage\": \"sft\", \"watermark\": 3}\n"
      "{\"time\": 2, \"event\": \"stage_given\", \"stage\": \"sft\", \"version\": 1}\n"
      "{\"time\": 2, \"event\": \"task_given\", \"stage\": \"e\", \"first_episode\": 0, \"episodes\": 4, \"actor\": 1, "
      "\"weights\": [\"sft\"]}\n"
      "{\"time\": 3, \"event\": \"task_done\", \"stage\": \"e\", \"first_episode\": 0, \"generated_tokens\": 5, "
      "\"seconds\": 1}\n"
      "{\"time\": 4, \"event\": \"published\", \"stage\": \"sft\", \"weights\": {\"name\": \"sft\", \"version\": 1, "
      "\"content_hash\": \"h\", \"path\": \"/p\", \"step\": 1, \"generation_depth\": 1}}\n"
      "{\"time\": 5, \"event\": \"stage_done\", \"stage\": \"sft\", \"detail\": \"d\", \"metrics\": {\"loss\": 1}}\n"
      "{\"time\": 6, \"event\": \"ended\", \"state\": \"succeeded\", \"error\": \"\"}\n";
  const std::string result =
      "{\"job\": \"j\", \"state\": \"succeeded\", \"table\": [{\"policy\": \"sft\", \"episodes\": 3, \"mean_return\": "
      "1.5}], \"stages\": []}";
  seeds["history_fuzz/run"] =
      seeds["journal_fuzz/journal"] +
      "\xff{\"stage\": \"sft\", \"step\": 1, \"loss\": 2.5}\n{\"stage\": \"sft\", \"step\": 2, \"entropy\": 1}\n"
      "\xff{\"time\": 1, \"role\": \"supervisor\", \"text\": \"t\"}\n\xff" +
      result +
      "\xff{\"sft\": {\"name\": \"sft\", \"version\": 1, \"content_hash\": \"h\", \"path\": \"weights/sft-1\"}}";
  return seeds;
}

}  // namespace
}  // namespace quern

int main(int argc, char** argv) {
  using namespace quern;
  if (argc != 2) return 2;
  std::map<std::string, std::string> seeds = Seeds();
  StoreFiles(JoinPath(argv[1], "store"), &seeds);
  for (const auto& [name, bytes] : seeds) {
    const std::string path = JoinPath(argv[1], name);
    if (!MakeDirectories(path.substr(0, path.rfind('/'))).ok() || !WriteFileAtomic(path, bytes).ok()) return 1;
  }
  return 0;
}
