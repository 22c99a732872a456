#include <gtest/gtest.h>

#include <map>
#include <set>

#include "actors/environments/contains.h"
#include "actors/environments/sentences.h"
#include "actors/environments/text.h"
#include "tests/actors/environment_plays.h"

namespace quern {
namespace {

TEST(Contains, FindsWholeWords) {
  EXPECT_TRUE(ContainsWord("A dog ran.", "dog", true));
  EXPECT_TRUE(ContainsWord("Dog!", "dog", true));
  EXPECT_FALSE(ContainsWord("Dog!", "dog", false));
  EXPECT_FALSE(ContainsWord("dogs hotdog dog2", "dog", true));
  EXPECT_TRUE(ContainsWord("hotdog, dog", "dog", true));
  EXPECT_FALSE(ContainsWord("", "dog", true));
  const Factory factory = Make("contains", {{"word", "happy"}, {"prompt", "The happy cat"}, {"max_tokens", "30"}});
  auto environment = factory->NewEnvironment();
  EXPECT_EQ(environment->Reset(1).text, "The happy cat");
  EXPECT_EQ(environment->action_end(), "");
  EXPECT_EQ(environment->max_action_tokens(), 30);
  EXPECT_EQ(environment->Step(" slept.").reward, 0);  // the prompt's own word does not count
  environment->Reset(2);
  const StepOutcome outcome = environment->Step(" was Happy.");
  EXPECT_TRUE(outcome.done && outcome.success);
  EXPECT_EQ(outcome.reward, 1);
}

TEST(Sentences, TheWriterWritesTheLanguage) {
  const Factory factory = Make("sentences", {{"words", "5"}, {"length", "8"}});
  const Language language(5, 1.5, 0);
  double entropy = 0;
  for (int from = 0; from <= 5; ++from) {
    double sum = 0;
    for (int to = 0; to < 5; ++to) sum += language.Probability(from, to);
    EXPECT_NEAR(sum, 1, 1e-12);
  }
  // The chain's distribution after each word, and with it what a sentence's mean log-probability should be.
  std::vector<double> state(6, 0.0);
  state[5] = 1;
  for (int i = 0; i < 8; ++i) {
    std::vector<double> next(6, 0.0);
    for (int from = 0; from <= 5; ++from) {
      for (int to = 0; to < 5; ++to) {
        const double p = language.Probability(from, to);
        const double mass = state[static_cast<size_t>(from)] * p;
        next[static_cast<size_t>(to)] += mass;
        entropy -= mass * std::log(p) / 8;
      }
    }
    state = next;
  }
  const Stats written = Measure(*factory, "writer", 4000);
  EXPECT_NEAR(written.mean, -entropy, 5 * written.error);
  EXPECT_EQ(written.success, 1);
  EXPECT_EQ(Play(*factory, "writer", 3).text, Play(*factory, "writer", 3).text);
  EXPECT_NE(Play(*factory, "writer", 3).text, Play(*factory, "writer", 4).text);
  EXPECT_EQ(Play(*factory, "writer", 3).text.size(), 10u) << "the start, eight words, a newline";
  auto environment = factory->NewEnvironment();
  environment->Reset(0);
  EXPECT_EQ(environment->Step("zz\n").reward, -10) << "no words of the language";
  EXPECT_NE(ErrorOf("sentences", {{"lenght", "3"}}), "");
}

TEST(Text, PiecesComeFromTheirPartOfTheText) {
  const std::string path = testing::TempDir() + "/pieces.txt";
  std::string text;
  for (int i = 0; i < 300; ++i) text += StrCat(i, i % 2 == 0 ? "\u00e4" : "\n");
  ASSERT_TRUE(WriteFileAtomic(path, text).ok());
  const Factory factory = Make("text", {{"file", path}, {"length", "20"}, {"heldout", "0.25"}});
  const size_t cut = text.find("232");  // three quarters of the characters
  std::set<std::string> different;
  for (const char* part : {"train", "heldout"}) {
    const auto player = factory->NewPlayer("writer", {{"part", part}});
    ASSERT_TRUE(player.ok());
    for (uint64_t seed = 0; seed < 30; ++seed) {
      auto environment = factory->NewEnvironment();
      const Observation first = environment->Reset(seed);
      (*player)->Reset(seed, first);
      const std::string piece = (*player)->Act();
      EXPECT_TRUE(Covered(first.text + piece, factory->vocabulary())) << piece;
      EXPECT_EQ(std::count_if(piece.begin(), piece.end(), [](char c) { return (c & 0xc0) != 0x80; }), 20);
      const size_t at = text.find(piece);
      ASSERT_NE(at, std::string::npos);
      EXPECT_EQ(at >= cut, std::string(part) == "heldout") << at;
      different.insert(piece);
      EXPECT_TRUE(environment->Step(piece).done);
    }
  }
  EXPECT_GT(different.size(), 40u);
  EXPECT_EQ(factory->vocabulary(),
            (std::vector<std::string>{"\x02", "\n", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "\u00e4"}));
  EXPECT_NE(ErrorOf("text", {{"file", path}, {"length", "900"}}).find("too few"), std::string::npos);
}

TEST(Text, AssignmentsAnswerWithTheLastValue) {
  const std::string text = Assignments(4000, 3);
  std::map<char, char> values;
  int asked = 0;
  for (size_t i = 0; i + 3 < text.size(); i += 4) {
    ASSERT_EQ(text[i + 3], '\n');
    if (text[i + 1] == '?') {
      EXPECT_EQ(values.at(text[i]), text[i + 2]);
      ++asked;
    } else {
      values[text[i]] = text[i + 2];
    }
  }
  EXPECT_NEAR(asked, 490, 100);
}

}  // namespace
}  // namespace quern
