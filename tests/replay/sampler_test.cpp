#include "replay/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>

#include "base/random.h"
#include "base/strings.h"
#include "tests/replay/trajectories.h"

namespace quern {
namespace {

TEST(Permutation, IsOneForEverySizeSeedAndEpoch) {
  for (const uint64_t size : {1, 2, 3, 7, 64, 65, 1000, 4097}) {
    std::set<std::vector<uint64_t>> orders;
    for (uint64_t epoch = 0; epoch < 4; ++epoch) {
      const Permutation permutation(size, 42, epoch);
      std::vector<uint64_t> values;
      for (uint64_t i = 0; i < size; ++i) values.push_back(permutation(i));
      orders.insert(values);
      std::sort(values.begin(), values.end());
      for (uint64_t i = 0; i < size; ++i) ASSERT_EQ(values[i], i) << size;
    }
    if (size > 60) {
      EXPECT_EQ(orders.size(), 4u) << "epochs differ";
    }
  }
}

TEST(Permutation, EveryPlaceIsEquallyLikely) {
  // 5 values, 5,000 seeds: each (place, value) is expected 1,000 times; the bound is over six standard deviations.
  int counts[5][5] = {};
  for (uint64_t seed = 0; seed < 5000; ++seed) {
    const Permutation permutation(5, seed, 0);
    for (uint64_t i = 0; i < 5; ++i) ++counts[i][permutation(i)];
  }
  for (const auto& row : counts)
    for (const int count : row) EXPECT_NEAR(count, 1000, 180);
}

TEST(Sequence, PassesOverEverythingBeforeRepeating) {
  const auto all = SequenceIndices(10, 7, 0, 30);
  for (int pass = 0; pass < 3; ++pass)
    EXPECT_EQ(std::set<uint64_t>(all.begin() + 10 * pass, all.begin() + 10 * (pass + 1)).size(), 10u);
  // Any cut of the sequence is the same sequence.
  std::vector<uint64_t> pieces;
  for (uint64_t first = 0; first < 30; first += 4) {
    const auto piece = SequenceIndices(10, 7, first, std::min<uint64_t>(4, 30 - first));
    pieces.insert(pieces.end(), piece.begin(), piece.end());
  }
  EXPECT_EQ(pieces, all);
}

class SamplerTest : public ::testing::Test {
 protected:
  void Add(const v1::Trajectory& t) { table_.Append(MakeRow(t, t.ByteSizeLong())); }
  Result<Sampler::Choice> Choose(const v1::SampleRequest& request) {
    return sampler_.Choose(table_, request, [](uint64_t, const RowFilter&) -> Result<bool> { return true; });
  }
  RecordTable table_;
  Sampler sampler_;
};

TEST_F(SamplerTest, AListThatGrewEqualsOneBuiltAtOnce) {
  v1::SampleRequest request;
  request.set_count(16);
  request.set_seed(5);
  std::vector<std::vector<uint64_t>> grown;
  for (int i = 1; i <= 200; ++i) {
    Add(MakeTrajectory(StrCat("uid-", i), static_cast<float>(i % 13)));
    if (i % 20 != 0) continue;
    request.set_watermark(static_cast<uint64_t>(i));
    grown.push_back(Choose(request)->numbers);
  }
  // Again, newest first and then with nothing remembered.
  for (int pass = 0; pass < 2; ++pass) {
    for (size_t k = grown.size(); k-- > 0;) {
      if (pass == 1) sampler_.Clear();
      request.set_watermark(20 * (k + 1));
      EXPECT_EQ(Choose(request)->numbers, grown[k]);
    }
  }
}

// Sets that grow by one and by many, whose buckets divide, with many records of one name in different runs.
TEST(CandidateSet, IsInOrderHoweverItGrew) {
  RecordTable table;
  CandidateSet set(&table);
  std::vector<uint64_t> sorted;
  std::vector<std::pair<uint64_t, std::vector<uint64_t>>> earlier;
  Random random(5);
  while (table.newest() < 20'000) {
    std::vector<uint32_t> fresh;
    const uint64_t count = random.Below(4) == 0 ? 3000 : 1 + random.Below(200);
    for (uint64_t i = 0; i < count; ++i) {
      v1::Trajectory t;
      t.set_run(StrCat("run", random.Below(5)));
      t.set_uid(StrCat(t.run(), "/", table.newest() / 5));
      table.Append(MakeRow(t, 1));
      if (random.Below(3) > 0) fresh.push_back(static_cast<uint32_t>(table.newest()));
    }
    set.Extend(fresh, table.newest());
    sorted.insert(sorted.end(), fresh.begin(), fresh.end());
    std::sort(sorted.begin(), sorted.end(), [&](uint64_t a, uint64_t b) { return table.Before(a, b); });
    ASSERT_EQ(set.InOrder(), sorted);
    ASSERT_EQ(set.size(), sorted.size());
    for (int i = 0; i < 100; ++i) {
      const uint64_t rank = random.Below(sorted.size());
      ASSERT_EQ(set[rank], sorted[rank]);
    }
    earlier.emplace_back(set.watermark(), sorted);
  }
  for (const auto& [watermark, numbers] : earlier) EXPECT_EQ(set.At(watermark)->InOrder(), numbers);
  const auto half = set.At(earlier[earlier.size() / 2].first);
  EXPECT_EQ((*half)[17], earlier[earlier.size() / 2].second[17]);
}

TEST_F(SamplerTest, TopFractionKeepsTheHighestReturns) {
  for (int i = 1; i <= 100; ++i) Add(MakeTrajectory(StrCat("u", i), static_cast<float>(i)));
  v1::SampleRequest request;
  request.set_watermark(100);
  request.set_count(10);
  request.set_top_fraction(0.1f);
  const auto choice = *Choose(request);
  EXPECT_EQ(choice.candidates, 100u);
  EXPECT_EQ(std::set<uint64_t>(choice.numbers.begin(), choice.numbers.end()),
            (std::set<uint64_t>{91, 92, 93, 94, 95, 96, 97, 98, 99, 100}));
}

TEST_F(SamplerTest, TopFractionBreaksTiesByUidWhateverTheOrderOfArrival) {
  std::vector<std::string> uids;
  for (int i = 0; i < 40; ++i) uids.push_back(StrCat("tie-", i));
  std::set<std::string> chosen[2];
  for (int order = 0; order < 2; ++order) {
    RecordTable table;
    for (const std::string& uid : uids) table.Append(MakeRow(MakeTrajectory(uid, 1), 100));
    v1::SampleRequest request;
    request.set_watermark(40);
    request.set_count(20);
    request.set_top_fraction(0.5f);
    Sampler sampler;
    const auto choice = *sampler.Choose(table, request, {});
    for (const uint64_t number : choice.numbers) chosen[order].insert(uids[number - 1]);
    std::reverse(uids.begin(), uids.end());
  }
  EXPECT_EQ(chosen[0].size(), 20u);
  EXPECT_EQ(chosen[0], chosen[1]);
}

TEST_F(SamplerTest, ARunsNameDoesNotChangeWhatIsDrawn) {
  std::vector<uint64_t> drawn[2];
  for (int name = 0; name < 2; ++name) {
    const std::string run = name == 0 ? "a" : "another/one";
    RecordTable table;
    for (int i = 0; i < 40; ++i) {
      v1::Trajectory t = MakeTrajectory(StrCat(run, "/collect/", i), 1);
      t.set_run(run);
      table.Append(MakeRow(t, 100));
    }
    v1::SampleRequest request;
    request.set_watermark(40);
    request.set_count(20);
    request.set_top_fraction(0.5f);
    Sampler sampler;
    drawn[name] = sampler.Choose(table, request, {})->numbers;
  }
  EXPECT_EQ(drawn[0].size(), 20u);
  EXPECT_EQ(drawn[0], drawn[1]);
}

TEST_F(SamplerTest, PartsAreDrawnByClassAndDescribed) {
  const std::vector<v1::Verdict> verdicts = {v1::VERDICT_UNSPECIFIED, v1::VERDICT_VERIFIED, v1::VERDICT_HINTED,
                                             v1::VERDICT_UNVERIFIED, v1::VERDICT_FAILED};
  for (int i = 1; i <= 60; ++i) {
    v1::Trajectory t = MakeTrajectory(StrCat("u", i), 0, i <= 30 ? v1::SOURCE_REAL : v1::SOURCE_GENERATED);
    if (i <= 20) t.set_token_ids(std::string(32, '\1'));  // twenty times the same text
    if (i > 20) t.mutable_token_ids()->back() = static_cast<char>(i);
    if (i > 30) t.set_verdict(verdicts[static_cast<size_t>(i) % verdicts.size()]);
    if (i > 30) t.set_generation_depth(i > 40 ? 2 : 1);
    Add(t);
  }
  v1::SampleRequest request;
  request.set_watermark(60);
  request.set_seed(4);
  request.set_describe(true);
  for (int c = v1::DATA_CLASS_REAL; c <= v1::DATA_CLASS_UNVERIFIED; ++c) {
    v1::SamplePart& part = *request.add_parts();
    part.set_data_class(static_cast<v1::DataClass>(c));
    part.set_first(3);
    part.set_count(c == v1::DATA_CLASS_REAL ? 30 : 6);
  }
  const auto choice = *Choose(request);
  ASSERT_EQ(choice.numbers.size(), 48u);
  for (size_t i = 0; i < choice.numbers.size(); ++i) {
    const RecordKind& row = table_.KindOf(choice.numbers[i]);
    const int expected = i < 30 ? 1 : 2 + static_cast<int>(i - 30) / 6;
    EXPECT_EQ(ClassOf(row.source, row.verdict), expected) << i;
  }
  ASSERT_EQ(choice.parts.size(), 4u);
  EXPECT_EQ(choice.parts[0].records(), 30u);
  EXPECT_EQ(choice.parts[0].unique(), 11u);
  EXPECT_EQ(choice.parts[0].depths().at(0), 30u);
  EXPECT_EQ(choice.parts[1].records(), 6u);
  EXPECT_EQ(choice.parts[3].records(), 18u) << "not judged, chosen by majority, failed";
  EXPECT_EQ(choice.parts[3].depths().at(1) + choice.parts[3].depths().at(2), 18u);
  // The real part is what a request for real records alone gives; cut in two it is the same.
  v1::SampleRequest real;
  real.set_watermark(60);
  real.set_seed(4);
  for (const uint64_t first : {3, 18}) {
    v1::SamplePart& part = *real.add_parts();
    part.set_data_class(v1::DATA_CLASS_REAL);
    part.set_first(first);
    part.set_count(15);
  }
  EXPECT_EQ(Choose(real)->numbers, std::vector<uint64_t>(choice.numbers.begin(), choice.numbers.begin() + 30));
}

TEST_F(SamplerTest, ALimitIsNestedAndDoesNotDependOnTheOrderOfArrival) {
  std::vector<std::string> uids;
  for (int i = 0; i < 50; ++i) uids.push_back(StrCat("uid-", i));
  std::set<std::string> chosen[2], fewer;
  for (int order = 0; order < 2; ++order) {
    RecordTable table;
    for (const std::string& uid : uids) table.Append(MakeRow(MakeTrajectory(uid, 1, v1::SOURCE_REAL), 100));
    Sampler sampler;
    for (const uint64_t limit : {10, 20}) {
      v1::SampleRequest request;
      request.set_watermark(50);
      v1::SamplePart& part = *request.add_parts();
      part.set_data_class(v1::DATA_CLASS_REAL);
      part.set_limit(limit);
      part.set_count(60);
      std::set<std::string>& out = limit == 10 ? fewer : chosen[order];
      const Sampler::Choice choice = *sampler.Choose(table, request, {});
      for (const uint64_t number : choice.numbers) out.insert(uids[number - 1]);
    }
    std::reverse(uids.begin(), uids.end());
  }
  EXPECT_EQ(chosen[0].size(), 20u);
  EXPECT_EQ(chosen[0], chosen[1]);
  EXPECT_EQ(fewer.size(), 10u);
  for (const std::string& uid : fewer) EXPECT_TRUE(chosen[0].contains(uid));
}

TEST_F(SamplerTest, BadRequests) {
  Add(MakeTrajectory("a"));
  const auto code = [&](const std::function<void(v1::SampleRequest*)>& spoil) {
    v1::SampleRequest request;
    request.set_watermark(1);
    request.set_count(1);
    spoil(&request);
    return Choose(request).status().code();
  };
  EXPECT_EQ(code([](auto*) {}), StatusCode::kOk);
  EXPECT_EQ(code([](auto* r) { r->set_watermark(0); }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](auto* r) { r->set_watermark(2); }), StatusCode::kFailedPrecondition);
  EXPECT_EQ(code([](auto* r) { r->set_count(0); }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](auto* r) { r->set_top_fraction(1.5f); }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](auto* r) { r->set_top_fraction(NAN); }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](auto* r) { r->set_step(~uint64_t{0}); }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](auto* r) { r->mutable_filter()->set_run("other"); }), StatusCode::kNotFound);
  EXPECT_EQ(code([](auto* r) { r->add_parts()->set_count(1); }), StatusCode::kInvalidArgument) << "and a count";
  EXPECT_EQ(code([](auto* r) {
              r->clear_count();
              r->add_parts()->set_count(1);
              r->mutable_filter()->set_data_class(v1::DATA_CLASS_REAL);
            }),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](auto* r) {
              r->clear_count();
              r->add_parts()->set_count(1);
              r->mutable_parts(0)->set_data_class(v1::DATA_CLASS_HINTED);
            }),
            StatusCode::kNotFound);
}

TEST_F(SamplerTest, PrioritisedDrawsFollowTheRanks) {
  // Returns in no order; ties are broken by the table's order, so that ranks are defined.
  for (int i = 0; i < 40; ++i) Add(MakeTrajectory(StrCat("u", i), static_cast<float>((7 * i) % 20)));
  std::vector<uint64_t> by_rank(40);
  for (uint64_t i = 0; i < 40; ++i) by_rank[i] = i + 1;
  std::sort(by_rank.begin(), by_rank.end(), [&](uint64_t a, uint64_t b) {
    const double x = table_.row(a).episode_return, y = table_.row(b).episode_return;
    return x != y ? x > y : table_.Before(a, b);
  });
  const double exponents[] = {0.0, 0.7, 2.0};
  for (const double exponent : exponents) {
    v1::SampleRequest request;
    request.set_watermark(40);
    request.set_seed(11);
    request.set_count(500);
    request.set_selector(v1::SELECTOR_PRIORITISED);
    request.set_priority_exponent(static_cast<float>(exponent));
    std::map<uint64_t, double> counts;
    constexpr int kDraws = 100'000;
    for (uint64_t step = 0; step < kDraws / 500; ++step) {
      request.set_step(step);
      const auto choice = Choose(request);
      for (const uint64_t number : choice->numbers) ++counts[number];
    }
    double sum = 0;
    for (int rank = 1; rank <= 40; ++rank) sum += std::pow(rank, -exponent);
    for (int rank = 1; rank <= 40; ++rank) {
      const double p = std::pow(rank, -exponent) / sum;
      // Six standard deviations of a binomial.
      EXPECT_NEAR(counts[by_rank[static_cast<size_t>(rank - 1)]], kDraws * p, 6 * std::sqrt(kDraws * p * (1 - p)))
          << "rank " << rank << ", exponent " << exponent;
    }
  }
}

TEST(RankDraws, IsTheInverseOfItsSums) {
  const RankDraws draws(1000, 1.0);
  double sum = 0;
  for (uint64_t i = 0; i < 1000; ++i) sum += draws.Probability(i);
  EXPECT_NEAR(sum, 1, 1e-12);
  EXPECT_NEAR(draws.Probability(0) / draws.Probability(9), 10, 1e-6);
  const RankDraws one(1, 5.0);
  for (uint64_t position = 0; position < 100; ++position) EXPECT_EQ(one(3, position), 0u);
}

TEST_F(SamplerTest, FifoGivesEachRecordOnceInTheOrderOfArrival) {
  for (int i = 0; i < 25; ++i) Add(MakeTrajectory(StrCat("u", i)));
  v1::SampleRequest request;
  request.set_watermark(23);
  request.set_seed(5);
  request.set_count(5);
  request.set_selector(v1::SELECTOR_FIFO);
  std::vector<uint64_t> all;
  for (uint64_t step = 0; step < 5; ++step) {
    request.set_step(step);
    const auto choice = Choose(request);
    ASSERT_TRUE(choice.ok()) << choice.status().message();
    EXPECT_EQ(choice->numbers.size(), step == 4 ? 3u : 5u);
    all.insert(all.end(), choice->numbers.begin(), choice->numbers.end());
  }
  std::vector<uint64_t> expected(23);
  for (uint64_t i = 0; i < 23; ++i) expected[i] = i + 1;
  EXPECT_EQ(all, expected);
  request.set_step(5);
  EXPECT_EQ(Choose(request).status().code(), StatusCode::kNotFound);
}

TEST_F(SamplerTest, AWindowKeepsTheNewestThatMatch) {
  for (int i = 0; i < 60; ++i)
    Add(MakeTrajectory(StrCat("u", i), 0, i % 2 == 0 ? v1::SOURCE_REAL : v1::SOURCE_GENERATED));
  v1::SampleRequest request;
  request.set_watermark(50);
  request.set_seed(5);
  request.set_count(10);
  request.set_window(10);
  request.mutable_filter()->set_source(v1::SOURCE_REAL);
  const std::vector<uint64_t> newest = {31, 33, 35, 37, 39, 41, 43, 45, 47, 49};
  for (uint64_t step = 0; step < 3; ++step) {  // a pass over the window each
    request.set_step(step);
    std::vector<uint64_t> numbers = Choose(request)->numbers;
    std::sort(numbers.begin(), numbers.end());
    EXPECT_EQ(numbers, newest);
  }
  // Of each class, in parts, and in order of arrival as well.
  request.clear_filter();
  request.clear_step();
  request.clear_count();
  request.set_window(2);
  request.set_selector(v1::SELECTOR_FIFO);
  for (const v1::DataClass data_class : {v1::DATA_CLASS_REAL, v1::DATA_CLASS_UNVERIFIED}) {
    v1::SamplePart& part = *request.add_parts();
    part.set_data_class(data_class);
    part.set_count(2);
  }
  const std::vector<uint64_t> of_both = {47, 49, 48, 50};
  EXPECT_EQ(Choose(request)->numbers, of_both);
}

TEST_F(SamplerTest, EverySelectorIsReproducedAfterARestart) {
  for (int i = 0; i < 90; ++i) Add(MakeTrajectory(StrCat("u", i), static_cast<float>(i % 9)));
  for (const v1::Selector selector : {v1::SELECTOR_UNIFORM, v1::SELECTOR_PRIORITISED, v1::SELECTOR_FIFO}) {
    for (const uint64_t window : {uint64_t{0}, uint64_t{40}}) {
      v1::SampleRequest request;
      request.set_watermark(80);
      request.set_seed(17);
      request.set_count(8);
      request.set_selector(selector);
      request.set_priority_exponent(0.7f);
      request.set_window(window);
      std::vector<std::vector<uint64_t>> before;
      for (uint64_t step = 0; step < 5; ++step) {
        request.set_step(step);
        before.push_back(Choose(request)->numbers);
      }
      sampler_.Clear();
      for (uint64_t step = 5; step-- > 2;) {  // a learner that goes on at step 2, other requests in between
        request.set_step(step);
        EXPECT_EQ(Choose(request)->numbers, before[step]);
        v1::SampleRequest other = request;
        other.set_watermark(70);
        EXPECT_TRUE(Choose(other).ok());
      }
    }
  }
  v1::SampleRequest bad;
  bad.set_watermark(10);
  bad.set_count(1);
  bad.set_selector(static_cast<v1::Selector>(9));
  EXPECT_EQ(Choose(bad).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace quern
