#include <gtest/gtest.h>

#include <fstream>

#include "base/file.h"
#include "tests/chat_template/render.h"
#include "tests/shared_data.h"

namespace quern {
namespace {

using Json = nlohmann::ordered_json;

Json ReadJson(const std::string& path) { return Json::parse(std::ifstream(path)); }

uint64_t Fnv(const std::string& text) {
  uint64_t value = 0xcbf29ce484222325;
  for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return value;
}

std::tm ReferenceTime() {
  std::tm now{};
  now.tm_year = 124;
  now.tm_mon = 6;
  now.tm_mday = 26;
  now.tm_hour = 13;
  now.tm_min = 5;
  now.tm_sec = 9;
  now.tm_wday = 5;
  now.tm_yday = 207;
  return now;
}

// The texts of the reference engine, by length and hash (make_reference.py).
TEST(RealTemplates, RenderAsTheReferenceEngineDoes) {
  QUERN_NEED_SHARED_DATA("chat-templates/contexts/simple.json");
  const Json reference = ReadJson(QUERN_TEST_FOLDER "/reference.json");
  const Json own = ReadJson(QUERN_TEST_FOLDER "/contexts.json");
  for (const auto& [key, expected] : reference.items()) {
    const size_t space = key.find(' ');
    const std::string name = key.substr(space + 1);
    const Json context = name.starts_with("own/") ? own.at(name.substr(4))
                                                  : ReadJson(SharedData("chat-templates/contexts/" + name.substr(7)));
    const auto text = ReadFile(SharedData("chat-templates/" + key.substr(0, space)));
    ASSERT_TRUE(text.ok()) << text.status().ToString();
    const std::string rendered = RenderText(*text, context, {.now = ReferenceTime()});
    if (const char* folder = std::getenv("QUERN_DUMP_RENDERINGS")) {
      std::string file = key;
      for (char& c : file)
        if (c == '/' || c == ' ') c = '_';
      std::ofstream(std::string(folder) + "/" + file) << rendered;
    }
    if (expected.contains("error")) {
      EXPECT_TRUE(rendered.starts_with("error: ")) << key;
      EXPECT_EQ(rendered.find('\n'), std::string::npos) << key;
    } else {
      EXPECT_EQ(rendered.size(), expected["bytes"].get<size_t>()) << key << "\n" << rendered;
      EXPECT_EQ(Fnv(rendered), expected["fnv"].get<uint64_t>()) << key;
    }
  }
}

// Published language cases; those that need functions of the host are in language_test.cpp.
TEST(RealTemplates, LanguageCases) {
  QUERN_NEED_SHARED_DATA("chat-templates/jinja_unit.json");
  int checked = 0;
  for (const Json& item : ReadJson(SharedData("chat-templates/jinja_unit.json"))) {
    if (item["needs_host_function"].get<bool>()) continue;
    EXPECT_EQ(RenderText(item["template"].get<std::string>(), item["context"], {.dialect = jinja::Dialect::kJson}),
              item["expected"].get<std::string>())
        << item["name"] << ": " << item["template"];
    ++checked;
  }
  EXPECT_EQ(checked, 157);
}

}  // namespace
}  // namespace quern
