#include "model/chat_template/chat_template.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/file.h"
#include "tests/shared_data.h"

namespace quern {
namespace {

using Json = nlohmann::ordered_json;

class ChatTemplateTest : public testing::Test {
 protected:
  void Write(const std::string& name, const std::string& text) {
    ASSERT_TRUE(WriteFileAtomic(folder_.File(name), text).ok());
  }
  void WriteConfig(const Json& json) { Write("tokenizer_config.json", json.dump()); }
  std::string Text(const Json& tools = nullptr, const Json& extra = nullptr, bool prompt = false) {
    const auto chat_template = ChatTemplate::Load(folder_.path());
    if (!chat_template.ok()) return "error: " + chat_template.status().message();
    const auto text = (*chat_template)->Render(messages_, tools, extra, {.add_generation_prompt = prompt});
    return text.ok() ? *text : "error: " + text.status().message();
  }

  ScratchFolder folder_;
  Json messages_ = {{{"role", "user"}, {"content", "Hi"}}};
};

TEST_F(ChatTemplateTest, FromTokenizerConfig) {
  WriteConfig({{"chat_template",
                "{{ bos_token }}{% for m in messages %}{{ m.role }}={{ m.content }}{{ eos_token }}{% endfor %}{% if "
                "add_generation_prompt %}bot={% endif %}"},
               {"bos_token", "<s>"},
               {"eos_token", {{"__type", "AddedToken"}, {"content", "</s>"}}},
               {"pad_token", nullptr}});
  EXPECT_EQ(Text(), "<s>user=Hi</s>");
  EXPECT_EQ(Text(nullptr, nullptr, true), "<s>user=Hi</s>bot=");
  EXPECT_EQ(Text(nullptr, {{"bos_token", "<b>"}, {"add_generation_prompt", true}}), "<b>user=Hi</s>bot=");
}

TEST_F(ChatTemplateTest, VariablesAreThoseOfTheReference) {
  WriteConfig({{"chat_template",
                "{{ tools is none }} {{ documents is none }} {{ bos_token is defined }} {{ thinking is defined }}"},
               {"bos_token", nullptr}});
  EXPECT_EQ(Text(), "True True False False");
  EXPECT_EQ(Text(Json::array(), {{"thinking", false}, {"documents", Json::array()}}), "False False False True");
}

TEST_F(ChatTemplateTest, NamedTemplates) {
  WriteConfig({{"chat_template",
                {{{"name", "default"}, {"template", "plain"}},
                 {{"name", "tool_use"}, {"template", "{{ tools|length }} tools"}}}}});
  EXPECT_EQ(Text(), "plain");
  EXPECT_EQ(Text({1, 2}), "2 tools");
  WriteConfig({{"chat_template", {{{"name", "rag"}, {"template", "x"}}}}});
  EXPECT_EQ(Text(), "error: " + folder_.path() + ": no chat template with the name \"default\", only rag");
}

TEST_F(ChatTemplateTest, FilesGoBeforeTheConfiguration) {
  Write("chat_template.json", R"({"chat_template": "from json"})");
  EXPECT_EQ(Text(), "from json");
  WriteConfig({{"chat_template", "from config"}, {"bos_token", "<s>"}});
  EXPECT_EQ(Text(), "from config");
  Write("chat_template.jinja", "from file {{ bos_token }}");
  ASSERT_TRUE(MakeDirectories(folder_.File("additional_chat_templates")).ok());
  Write("additional_chat_templates/tool_use.jinja", "tools from file");
  EXPECT_EQ(Text(), "from file <s>");
  EXPECT_EQ(Text(Json::array()), "tools from file");
}

TEST_F(ChatTemplateTest, ErrorsNameFileAndLine) {
  const auto none = ChatTemplate::Load(folder_.path());
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.status().code(), StatusCode::kNotFound);
  const std::string config = folder_.File("tokenizer_config.json");
  WriteConfig({{"chat_template", 3}});
  EXPECT_EQ(Text(),
            "error: " + config + ": \"chat_template\" must be a text or a list of {\"name\", \"template\"}, not 3");
  WriteConfig({{"chat_template", "a\n{% if %}"}});
  EXPECT_EQ(Text(), "error: " + config + " (chat_template):2: expected an expression, not %}");
  WriteConfig({{"chat_template", "a\n\n{{ raise_exception('no system role') }}"}});
  EXPECT_EQ(Text(), "error: " + config + " (chat_template):3: the template refuses: no system role");
  Write("chat_template.jinja", "\xff");
  EXPECT_EQ(Text(), "error: " + folder_.File("chat_template.jinja") + ": the template is not valid UTF-8");
}

}  // namespace
}  // namespace quern
