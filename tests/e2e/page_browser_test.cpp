#include <nlohmann/json.hpp>

#include "tests/e2e/tiny_job.h"

namespace quern {
namespace {

using std::chrono::seconds;

// A program and what it said; 127 when it is not there.
QuernProcess::Ended Shell(const QuernProcess::Folder& folder, const std::string& command) {
  const std::string out = folder.File("shell-out"), err = folder.File("shell-err");
  QuernProcess::Ended ended;
  const int status = std::system(StrCat("timeout 120 ", command, " > ", out, " 2> ", err, " < /dev/null").c_str());
  ended.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  ended.out = *ReadFile(out);
  ended.err = *ReadFile(err);
  return ended;
}

std::string Chromium() {
  for (const char* name : {"/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"})
    if (PathExists(name)) return name;
  return {};
}

// Width and height in the file's header.
std::pair<uint32_t, uint32_t> PngSize(const std::string& bytes) {
  const auto number = [&](size_t at) {
    uint32_t value = 0;
    for (size_t i = at; i < at + 4; ++i) value = value << 8 | static_cast<unsigned char>(bytes[i]);
    return value;
  };
  if (bytes.size() < 33 || !bytes.starts_with("\x89PNG")) return {0, 0};
  return {number(16), number(20)};
}

TEST(PageInABrowser, EveryViewOfARunThatHasEnded) {
  const std::string chromium = Chromium();
  if (chromium.empty()) GTEST_SKIP() << "no Chromium (Debian's package chromium)";
  const QuernProcess::Folder folder;
  ASSERT_EQ(QuernProcess::Run(folder, RunArguments(folder)).code, 0);
  QuernProcess ui(folder, {"ui", "--run", "run"});
  std::string url;
  ASSERT_TRUE(Eventually([&] {
    const std::vector<std::string> names = *ListDirectory(folder.path());
    for (const std::string& name : names) {
      const std::string text = name.starts_with("out-") ? *ReadFile(folder.File(name)) : std::string();
      if (text.starts_with("http://127.0.0.1:") && text.ends_with("/\n")) url = text.substr(0, text.size() - 1);
    }
    return !url.empty();
  }));
  const std::string browser =
      StrCat(chromium, " --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars ",
             "--no-first-run --user-data-dir=", folder.File("profile"), " --enable-logging=stderr ",
             "--virtual-time-budget=8000 ");
  const std::vector<std::pair<std::string, std::vector<std::string>>> views = {
      {"overview", {"Q-SFT after the online phase", "best known player (best)", "eval:q_sft", "succeeded", "264"}},
      {"learning", {"<path", "Learning curves", "online-1:q_sft", "Gradient norm"}},
      {"samples", {"reward", "assistant", "Older ones", "player:"}},
      {"replay", {"player:random", "generated"}},
      {"processes", {"The job is not running"}},
      {"events", {"the job began", "stage q_sft is done", "weights sft version 1"}},
      {"job", {"\"max_restarts\": 5"}},
  };
  for (const auto& [view, texts] : views) {
    const auto seen = Shell(folder, StrCat(browser, "--dump-dom '", url, "#", view, "'"));
    ASSERT_EQ(seen.code, 0) << seen.err;
    for (const std::string& text : texts) EXPECT_NE(seen.out.find(text), std::string::npos) << view << ": " << text;
    EXPECT_EQ(seen.out.find("does not answer any more"), seen.out.rfind("does not answer any more")) << view;
    // Errors of the script, and requests that its policy forbids.
    EXPECT_EQ(seen.err.find("CONSOLE"), std::string::npos) << view << "\n" << seen.err;
  }
  for (const auto& [name, width, height] : {std::tuple("desktop", 1280u, 900u), std::tuple("phone", 390u, 844u)}) {
    const std::string png = folder.File(StrCat(name, ".png"));
    const auto shot =
        Shell(folder, StrCat(browser, "--window-size=", width, ",", height, " --screenshot=", png, " '", url, "'"));
    ASSERT_EQ(shot.code, 0) << shot.err;
    const Result<std::string> bytes = ReadFile(png);
    ASSERT_TRUE(bytes.ok()) << shot.err;
    EXPECT_EQ(PngSize(*bytes).first, width);
    EXPECT_GT(bytes->size(), 20000u) << "next to nothing is on the picture";
  }
  ui.Signal(SIGINT);
  EXPECT_EQ(ui.Wait().code, 0);
}

}  // namespace
}  // namespace quern
