#include <arpa/inet.h>
#include <sys/mount.h>
#include <sys/socket.h>

#include <nlohmann/json.hpp>
#include <set>

#include "tests/e2e/tiny_job.h"
#include "tests/transport/http_client.h"

namespace quern {
namespace {

// The command fails with `code` and exactly one line, which holds `text`.
void ExpectOneLine(const QuernProcess::Ended& ended, int code, const std::string& text) {
  EXPECT_EQ(ended.code, code) << ended.err;
  EXPECT_EQ(ended.out, "");
  EXPECT_EQ(CountLines(ended.err), 1u) << ended.err;
  EXPECT_EQ(ended.err.substr(0, 7), "quern: ") << ended.err;
  EXPECT_NE(ended.err.find(text), std::string::npos) << ended.err;
}

// A job that failed after it had begun: its last line says why.
void ExpectFailedJob(const QuernProcess::Ended& ended, const std::string& text) {
  EXPECT_EQ(ended.code, 100) << ended.err;
  const size_t last = ended.err.rfind("quern: job failed: ");
  ASSERT_NE(last, std::string::npos) << ended.err;
  EXPECT_EQ(CountLines(ended.err.substr(last)), 1u) << ended.err;
  EXPECT_NE(ended.err.find(text, last), std::string::npos) << ended.err;
}

class BadInput : public ::testing::Test {
 protected:
  QuernProcess::Ended RunJob(const std::vector<std::string>& overrides) {
    return QuernProcess::Run(folder_, RunArguments(folder_, overrides));
  }
  QuernProcess::Ended Quern(const std::vector<std::string>& arguments) { return QuernProcess::Run(folder_, arguments); }
  void Write(const std::string& name, const std::string& text) {
    ASSERT_TRUE(MakeDirectories(std::filesystem::path(folder_.File(name)).parent_path()).ok());
    ASSERT_TRUE(WriteFileAtomic(folder_.File(name), text).ok());
  }
  // A model that `quern run` made, to be broken.
  std::string MakeModel() {
    EXPECT_EQ(RunJob({"compare=[]", "method=sft", "online.rounds=0", "data.collect=[{player: random, episodes: 8}]",
                      "evaluate.episodes=0", "sft.max_steps=1"})
                  .code,
              0);
    return folder_.File("run/model");
  }

  QuernProcess::Folder folder_;
};

TEST_F(BadInput, TheCommandLine) {
  ExpectOneLine(Quern({"rnu"}), 2, "no command 'rnu'; did you mean 'run'?");
  ExpectOneLine(Quern({"run"}), 2, "job is required");
  ExpectOneLine(Quern({"run", "job.yaml", "--bogus"}), 2, "--bogus");
  ExpectOneLine(Quern({"run", "job.yaml", "seed"}), 2, "'seed': an override is written key.path=value");
  ExpectOneLine(Quern({"generate", "--model", "m"}), 2, "one of --prompt, --input and --token-ids");
  ExpectOneLine(Quern({"generate", "--model", "m", "--prompt", "a", "--temperature", "hot"}), 2,
                "--temperature: must be a number, 0 or more, not 'hot'");
  ExpectOneLine(Quern({"generate", "--model", "m", "--prompt", "a", "--repetition-penalty", "0"}), 2,
                "--repetition-penalty: must be a number above 0, not '0'");
  ExpectOneLine(Quern({"eval", "--run", "nowhere"}), 102, "nowhere: no such run directory");
}

// Every command of the list has examples, and options with their defaults.
TEST_F(BadInput, Help) {
  const QuernProcess::Ended help = Quern({"help"});
  EXPECT_EQ(help.code, 0);
  std::set<std::string> commands;
  const size_t from = help.out.find("Subcommands:"), to = help.out.find("Roles (");
  ASSERT_NE(from, std::string::npos) << help.out;
  ASSERT_LT(from, to);
  for (const std::string& line : StrSplit(help.out.substr(from, to - from), '\n'))
    if (line.starts_with("  ") && line.size() > 2 && line[2] != ' ')
      commands.insert(line.substr(2, line.find(' ', 2) - 2));
  EXPECT_GE(commands.size(), 25u) << help.out;
  for (const std::string& command : commands) {
    const QuernProcess::Ended shown = Quern({command, "--help"});
    EXPECT_EQ(shown.code, 0) << command;
    EXPECT_NE(shown.out.find("\nExamples:\n  quern " + command), shown.out.find("\nExamples:\n  echo ")) << shown.out;
    EXPECT_EQ(Quern({"help", command}).out, shown.out);
  }
  EXPECT_NE(Quern({"generate", "--help"}).out.find("--max-tokens INT=128 "), std::string::npos)
      << Quern({"generate", "--help"}).out;
  EXPECT_NE(Quern({"replay", "query", "--help"}).out.find("Examples:"), std::string::npos);
}

TEST_F(BadInput, Conversations) {
  Write("m/chat_template.jinja",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% if m.role == 'judge' %}\n"
        "{{ raise_exception('no judges') }}{% endif %}{% endfor %}{{ tools|tojson }}");
  Write("rows.jsonl", R"({"messages": [{"role": "user", "content": "Hi"}], "tools": [{"b": 1, "a": 2}]})");
  const QuernProcess::Ended tools = Quern({"chat", "--model", "m", "--input", "rows.jsonl", "--tools"});
  EXPECT_EQ(tools.code, 0) << tools.err;
  EXPECT_EQ(tools.out, R"({"text":"user: Hi\n[{\"b\": 1, \"a\": 2}]","token_ids":null})"
                       "\n");
  EXPECT_NE(tools.err.find("token_ids will be null"), std::string::npos) << tools.err;
  const QuernProcess::Ended plain = Quern({"chat", "--model", "m", "--input", "rows.jsonl"});
  EXPECT_EQ(plain.out, R"({"text":"user: Hi\nnull","token_ids":null})"
                       "\n");
  EXPECT_NE(plain.err.find("left out without --tools"), std::string::npos) << plain.err;

  Write("m/tokenizer_config.json", R"({"char_ords": [72, 105], "model_max_length": 16})");
  Write("rows.jsonl",
        "\n"
        R"({"messages": [{"role": "judge", "content": "Hi"}]})");
  ExpectOneLine(Quern({"chat", "--model", "m", "--input", "rows.jsonl"}), 1,
                "rows.jsonl:2: m/chat_template.jinja:3: the template refuses: no judges");
  Write("rows.jsonl", R"({"prompt": "Hi"})");
  ExpectOneLine(Quern({"chat", "--model", "m", "--input", "rows.jsonl"}), 1, "rows.jsonl:1: no list \"messages\"");
  Write("m/chat_template.jinja", "a\n{{ b");
  ExpectOneLine(Quern({"chat", "--model", "m", "--input", "rows.jsonl"}), 1,
                "m/chat_template.jinja:2: a tag is not closed with }}");
  ASSERT_TRUE(RemoveTree(folder_.File("m/chat_template.jinja")).ok());
  ExpectOneLine(Quern({"chat", "--model", "m", "--input", "rows.jsonl"}), 1, "m: no chat template");
}

TEST_F(BadInput, TheJobFile) {
  ExpectOneLine(Quern({"run", "missing.yaml"}), 1, "missing.yaml: No such file");
  Write("typo.yaml", "name: x\nsft:\n  learning_rat: 1\n");
  ExpectOneLine(Quern({"run", "typo.yaml"}), 1,
                "typo.yaml:3: unknown key 'sft.learning_rat'; did you mean 'sft.learning_rate'?");
  Write("type.yaml", "name: x\nseed: many\n");
  ExpectOneLine(Quern({"run", "type.yaml"}), 1, "type.yaml:2: 'seed' must be a whole number, 0 or more, not 'many'");
  ExpectOneLine(RunJob({"environment.wrods=x"}), 1, "wrods");
  ExpectOneLine(RunJob({"environment.name=wordel"}), 1, "wordel");
  ExpectOneLine(RunJob({"data.collect.0.player=randon"}), 1, "randon");
  ExpectOneLine(RunJob({"environment.words=./nowhere.txt"}), 1, "nowhere.txt");
  ExpectOneLine(RunJob({"data.import=[nowhere.jsonl]"}), 1, "nowhere.jsonl: No such file");
  ExpectOneLine(RunJob({"model_name_or_path=nowhere"}), 1, "nowhere: no such directory");
}

// Files of overrides are where the user is, those of the job file beside it.
TEST_F(BadInput, AFileOfAnOverrideIsFoundWhereTheUserIs) {
  const std::string job = WriteTinyJob(folder_);
  const QuernProcess::Folder elsewhere;
  ASSERT_TRUE(WriteFileAtomic(elsewhere.File("mine.txt"), "crane\nslate\nmoist\nbound\n").ok());
  const auto ended = QuernProcess::Run(elsewhere, {"run", job, "--dry-run", "environment.words=mine.txt"});
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_NE(ended.out.find(elsewhere.File("mine.txt")), std::string::npos) << ended.out;
}

TEST_F(BadInput, DryRunPrintsTheResolvedJobAndStartsNothing) {
  const auto ended = RunJob({"--dry-run", "seed=9"});
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_NE(ended.out.find("\"seed\": 9"), std::string::npos) << ended.out;
  EXPECT_FALSE(PathExists(folder_.File("run")));
}

TEST_F(BadInput, AnOutputDirectoryThatHoldsARun) {
  MakeModel();
  ExpectOneLine(RunJob({}), 1, "holds a run already");
}

TEST_F(BadInput, Models) {
  const std::string model = MakeModel();
  const std::string weights = *ReadFile(model + "/model.safetensors");
  const std::string config = *ReadFile(model + "/config.json");
  const auto generate = [&] {
    return Quern({"generate", "--model", model, "--prompt", "Wordle:\n", "--max-tokens", "3"});
  };
  EXPECT_EQ(generate().code, 0);

  std::string broken = weights;
  broken[9] = '#';
  ASSERT_TRUE(WriteFileAtomic(model + "/model.safetensors", broken).ok());
  ExpectOneLine(generate(), 1, "model.safetensors");
  ASSERT_TRUE(WriteFileAtomic(model + "/model.safetensors", weights.substr(0, weights.size() / 2)).ok());
  ExpectOneLine(generate(), 1, "model.safetensors");
  ASSERT_TRUE(WriteFileAtomic(model + "/model.safetensors", weights).ok());

  std::string other = config;
  other.replace(other.find("\"llama\""), 7, "\"banana\"");
  ASSERT_TRUE(WriteFileAtomic(model + "/config.json", other).ok());
  ExpectOneLine(generate(), 1, "banana");
  ExpectOneLine(Quern({"run", folder_.File("tiny.yaml"), "output_dir=run2", "model_name_or_path=" + model}), 1,
                "banana");
  ASSERT_TRUE(WriteFileAtomic(model + "/config.json", config.substr(0, config.size() / 2)).ok());
  ExpectOneLine(generate(), 1, "config.json");
}

TEST_F(BadInput, AMalformedLineOfImportedData) {
  Write("data.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Wordle:\\n\"}, {\"role\": \"assistant\", \"content\": \"c "
        "r a n e\\n\"}], "
        "\"rewards\": [-1], \"done\": true}\n"
        "{\"messages\": oops\n");
  const std::vector<std::string> import = {"data.import=[" + folder_.File("data.jsonl") + "]", "online.rounds=0"};
  ExpectOneLine(RunJob(import), 1, "data.jsonl:2: ");
  EXPECT_FALSE(PathExists(folder_.File("run"))) << "nothing was begun";
  const std::vector<std::string> heldout = {"data.heldout_import=[" + folder_.File("data.jsonl") + "]"};
  ExpectOneLine(RunJob(heldout), 1, "data.jsonl:2: ");
}

TEST_F(BadInput, ImportedDataAlone) {
  std::string rows;
  for (int i = 0; i < 12; ++i)
    rows += StrCat(
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Wordle:\\n\"}, {\"role\": \"assistant\", \"content\": \"",
        i % 2 == 0 ? "c r a n e" : "s l a t e", "\\n\"}], \"rewards\": [", i % 2 == 0 ? 0 : -1,
        "], \"done\": true, \"n\": ", i, "}\n");
  Write("data.jsonl", rows);
  const auto ended = RunJob({"data.import=[" + folder_.File("data.jsonl") + "]", "data.collect=[]", "online.rounds=0"});
  EXPECT_EQ(ended.code, 0) << ended.err;
  EXPECT_NE(ended.out.find("data mean"), std::string::npos);
}

TEST_F(BadInput, APortInUse) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const int port = ntohs(address.sin_port);
  const auto ended = RunJob({"network.transport=tcp", StrCat("network.replay_port=", port),
                             StrCat("network.coordinator_port=", port == 65535 ? port - 1 : port + 1)});
  close(fd);
  ExpectFailedJob(ended, StrCat("replay-server died: tcp://127.0.0.1:", port, ": in use by another server"));
  EXPECT_TRUE(ProcessesWith({folder_.path()}).empty());
}

// The disk is full for a moment: the store takes no records, says so, and goes on when there is room.
TEST_F(BadInput, ADiskThatIsFullForAMoment) {
  const std::string disk = folder_.File("disk"), filler = disk + "/filler";
  ASSERT_TRUE(MakeDirectories(disk).ok());
  if (mount("none", disk.c_str(), "tmpfs", 0, "size=64m") != 0) GTEST_SKIP() << "mounting a small disk needs root";
  // The store alone is on it.
  ASSERT_TRUE(MakeDirectories(folder_.File("run")).ok());
  ASSERT_TRUE(MakeDirectories(disk + "/replay").ok());
  ASSERT_EQ(symlink((disk + "/replay").c_str(), folder_.File("run/replay").c_str()), 0);
  QuernProcess process(folder_, RunArguments(folder_, {"data.collect.0.episodes=4000"}));
  const auto store = [&](const std::string& path) {
    const Result<std::string> text = ReadFile(folder_.File("run/http/replay-server-0.json"));
    if (!text.ok()) return std::string();
    const std::string target = nlohmann::json::parse(*text)[0]["targets"][0];
    return testing::HttpClient::Ask(std::atoi(target.c_str() + target.rfind(':') + 1), "GET", path);
  };
  const auto stalled = [&](const char* value) {
    return store("/metrics").find(StrCat("\nquern_replay_write_stalled ", value)) != std::string::npos;
  };
  EXPECT_TRUE(
      Eventually([&] { return stalled("0") && store("/metrics").find("_committed_total 0\n") == std::string::npos; }));
  const int fd = open(filler.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  const std::string block(1 << 16, 'x');
  while (write(fd, block.data(), block.size()) > 0) {
  }
  close(fd);
  EXPECT_TRUE(Eventually([&] { return stalled("1"); }, 20));
  const std::string ready = store("/readyz");
  EXPECT_EQ(testing::HttpClient::StatusOf(ready), 503) << ready;
  EXPECT_NE(ready.find("no space left on the disk"), std::string::npos) << ready;
  unlink(filler.c_str());
  EXPECT_TRUE(Eventually([&] { return stalled("0"); }, 20));
  EXPECT_EQ(testing::HttpClient::StatusOf(store("/readyz")), 200);
  const auto ended = process.Wait(std::chrono::seconds(120));
  EXPECT_EQ(ended.code, 0) << ended.err;
  const auto verified = QuernProcess::Run(folder_, {"replay", "verify", "--store", "run/replay"});
  EXPECT_EQ(verified.code, 0) << verified.err;
  umount2(disk.c_str(), MNT_DETACH);
}

TEST_F(BadInput, AFullDisk) {
  const std::string disk = folder_.File("disk");
  ASSERT_TRUE(MakeDirectories(disk).ok());
  if (mount("none", disk.c_str(), "tmpfs", 0, "size=3m") != 0) GTEST_SKIP() << "mounting a small disk needs root";
  auto arguments = RunArguments(folder_, {"output_dir=" + disk + "/run", "data.collect.0.episodes=200000"});
  const auto ended = QuernProcess(folder_, arguments).Wait(std::chrono::seconds(60));
  umount2(disk.c_str(), MNT_DETACH);
  ExpectFailedJob(ended, "no space left on the disk");
}

}  // namespace
}  // namespace quern
