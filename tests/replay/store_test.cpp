// What a store answers: records, queries, statistics and samples.

#include <algorithm>
#include <atomic>
#include <functional>
#include <set>
#include <thread>

#include "tests/replay/store_fixture.h"

namespace quern {
namespace {

TEST_F(StoreTest, RecordsComeBackAsTheBytesSentAlsoAfterReopening) {
  std::vector<std::string> sent;
  for (int i = 0; i < 5; ++i) {
    v1::Trajectory t = MakeTrajectory(StrCat("u", i), static_cast<float>(-i), v1::SOURCE_GENERATED, 5000);
    // A field of a later version is kept too.
    t.GetReflection()->MutableUnknownFields(&t)->AddVarint(900, 7);
    sent.push_back(t.SerializeAsString());
  }
  v1::InsertRequest request;
  for (const std::string& bytes : sent) request.add_trajectories(bytes);
  const auto reply = store_->Insert(request);
  ASSERT_TRUE(reply.ok()) << reply.status().message();
  EXPECT_EQ(reply->inserted(), 5u);
  EXPECT_EQ(reply->watermark(), 5u);
  for (int pass = 0; pass < 2; ++pass) {
    const auto page = store_->Query(v1::QueryRequest());
    ASSERT_TRUE(page.ok());
    ASSERT_EQ(page->trajectories_size(), 5);
    for (int i = 0; i < 5; ++i) {
      EXPECT_EQ(page->trajectories(i), sent[static_cast<size_t>(i)]);
      EXPECT_EQ(page->numbers(i), static_cast<uint64_t>(i + 1));
    }
    EXPECT_FALSE(page->more());
    Open();
  }
  ExpectSound(5);
}

TEST_F(StoreTest, TheSameUidIsStoredOnceAndCounted) {
  ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory("a"), MakeTrajectory("b"), MakeTrajectory("a")})).ok());
  const auto reply = *store_->Insert(MakeInsert({MakeTrajectory("b", -3), MakeTrajectory("c")}));
  EXPECT_EQ(reply.inserted(), 1u);
  EXPECT_EQ(reply.duplicates(), 1u);
  EXPECT_EQ(reply.watermark(), 3u);
  Open();
  EXPECT_EQ(store_->Stats({})->duplicates(), 2u);
  EXPECT_EQ(store_->Stats({})->records(), 3u);
  EXPECT_EQ(store_->Insert(MakeInsert({MakeTrajectory("a")}))->duplicates(), 1u);
  ExpectSound(3);
}

TEST_F(StoreTest, SaysWhichUidsItHas) {
  ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory("a"), MakeTrajectory("b")})).ok());
  v1::ContainsRequest request;
  for (const char* uid : {"b", "c", "", "a"}) request.add_uids(uid);
  for (int i = 0; i < 2; ++i) {
    const auto reply = store_->Contains(request);
    ASSERT_TRUE(reply.ok()) << reply.status().message();
    EXPECT_EQ(std::vector<bool>(reply->stored().begin(), reply->stored().end()),
              (std::vector<bool>{true, false, false, true}));
    Open();
  }
  for (int i = 0; i < 65536; ++i) request.add_uids("a");
  EXPECT_EQ(store_->Contains(request).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(StoreTest, AMalformedRecordRefusesItsRequestAndNoOther) {
  v1::Trajectory bad = MakeTrajectory("bad");
  bad.mutable_loss_mask()->pop_back();
  const v1::InsertRequest first = MakeInsert({MakeTrajectory("a"), bad});
  const v1::InsertRequest second = MakeInsert({MakeTrajectory("b")});
  const auto replies = store_->InsertGroup({&first, &second});
  EXPECT_EQ(replies[0].status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(replies[0].status().message().find("trajectory bad: loss_mask"), std::string::npos);
  EXPECT_EQ(replies[1]->inserted(), 1u);
  EXPECT_EQ(store_->watermark(), 1u);
  ExpectSound(1);
}

TEST_F(StoreTest, FiltersQueriesPagesAndStats) {
  for (int i = 1; i <= 30; ++i) {
    v1::Trajectory t =
        MakeTrajectory(StrCat("u", i), static_cast<float>(i), i % 3 == 0 ? v1::SOURCE_REAL : v1::SOURCE_GENERATED);
    t.set_run(i <= 10 ? "one" : "two");
    if (i % 5 == 0) t.add_tags("fifth");
    if (i % 2 == 0) t.set_success(true);
    if (t.policies_size() > 0) t.mutable_policies(0)->set_version(static_cast<uint64_t>(i));
    v1::Message* message = t.add_messages();
    message->set_role("user");
    message->set_content(StrCat("question number ", i, "."));
    ASSERT_TRUE(store_->Insert(MakeInsert({t})).ok());
  }
  for (int pass = 0; pass < 2; ++pass) {
    const auto count = [&](const std::function<void(v1::Filter*)>& set) {
      v1::QueryRequest request;
      set(request.mutable_filter());
      request.set_count_only(true);
      return store_->Query(request)->count();
    };
    EXPECT_EQ(count([](auto*) {}), 30u);
    EXPECT_EQ(count([](auto* f) { f->set_run("one"); }), 10u);
    EXPECT_EQ(count([](auto* f) { f->set_run("three"); }), 0u);
    EXPECT_EQ(count([](auto* f) { f->set_source(v1::SOURCE_REAL); }), 10u);
    EXPECT_EQ(count([](auto* f) { f->set_min_return(30); }), 1u);
    EXPECT_EQ(count([](auto* f) { f->set_max_return(2.5); }), 2u);
    EXPECT_EQ(count([](auto* f) { f->set_min_version(28); }), 2u);
    EXPECT_EQ(count([](auto* f) { f->set_max_version(0); }), 10u);
    EXPECT_EQ(count([](auto* f) { f->add_tags("fifth"); }), 6u);
    EXPECT_EQ(count([](auto* f) {
                f->add_tags("fifth");
                f->add_tags("online");
              }),
              4u);
    EXPECT_EQ(count([](auto* f) { f->add_without_tags("online"); }), 10u);
    EXPECT_EQ(count([](auto* f) { f->add_without_tags("never seen"); }), 30u);
    EXPECT_EQ(count([](auto* f) { f->set_task("task-u7"); }), 1u);
    EXPECT_EQ(count([](auto* f) { f->set_prompt_contains("number 1"); }), 11u);
    EXPECT_EQ(count([](auto* f) { f->set_prompt_contains("number 1."); }), 1u);

    v1::QueryRequest page;
    page.mutable_filter()->set_prompt_contains("number 1");
    page.set_limit(4);
    std::vector<uint64_t> numbers;
    while (true) {
      const auto reply = *store_->Query(page);
      numbers.insert(numbers.end(), reply.numbers().begin(), reply.numbers().end());
      EXPECT_LE(reply.numbers_size(), 4);
      if (!reply.more()) break;
      page.set_after(numbers.back());
    }
    EXPECT_EQ(numbers, (std::vector<uint64_t>{1, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}));

    page.set_newest_first(true);
    page.set_after(0);
    std::vector<uint64_t> back;
    while (true) {
      const auto reply = *store_->Query(page);
      back.insert(back.end(), reply.numbers().begin(), reply.numbers().end());
      if (!reply.more()) break;
      page.set_after(back.back());
    }
    EXPECT_EQ(back, std::vector<uint64_t>(numbers.rbegin(), numbers.rend()));

    v1::StatsRequest request;
    request.mutable_filter()->set_run("one");
    const auto stats = *store_->Stats(request);
    EXPECT_EQ(stats.records(), 10u);
    EXPECT_EQ(stats.tokens(), 80u);
    EXPECT_EQ(stats.watermark(), 30u);
    EXPECT_DOUBLE_EQ(stats.mean_return(), 5.5);
    EXPECT_DOUBLE_EQ(stats.return_variance(), 8.25);
    EXPECT_DOUBLE_EQ(stats.min_return(), 1);
    EXPECT_DOUBLE_EQ(stats.max_return(), 10);
    EXPECT_DOUBLE_EQ(stats.success_rate(), 0.5);
    EXPECT_EQ(stats.real(), 3u);
    EXPECT_EQ(stats.generated(), 7u);
    ASSERT_EQ(stats.tags_size(), 2);
    EXPECT_EQ(stats.tags(0).tag(), "fifth");
    EXPECT_EQ(stats.tags(0).records(), 2u);
    Open();
  }
}

TEST_F(StoreTest, PromptsAndLengthsAreFound) {
  std::vector<v1::Trajectory> all;
  for (int i = 0; i < 60; ++i) {
    v1::Trajectory t = MakeTrajectory(StrCat("u", i), 0, v1::SOURCE_REAL, i < 20 ? 8 : 16);
    if (i % 3 != 0) {
      v1::Message* system = t.add_messages();
      system->set_role("system");
      system->set_content("Be brief.");
      v1::Message* user = t.add_messages();
      user->set_role("user");
      user->set_content(StrCat("What is ", i % 2, "?\n"));
      v1::Message* answer = t.add_messages();
      answer->set_role("assistant");
      answer->set_content("One.");
    }
    all.push_back(t);
  }
  ASSERT_TRUE(store_->Insert(MakeInsert(all)).ok());
  for (int pass = 0; pass < 2; ++pass) {
    const auto count = [&](const std::function<void(v1::Filter*)>& set) {
      v1::QueryRequest request;
      request.set_count_only(true);
      set(request.mutable_filter());
      return store_->Query(request)->count();
    };
    EXPECT_EQ(count([](v1::Filter* f) { f->set_prompt("Be brief.\nWhat is 1?"); }), 20u);
    EXPECT_EQ(count([](v1::Filter* f) { f->set_prompt("Be brief.\nWhat is 0?\n\n"); }), 20u);
    EXPECT_EQ(count([](v1::Filter* f) { f->set_prompt("What is 1?"); }), 0u);
    EXPECT_EQ(count([](v1::Filter* f) { f->set_prompt("task-u3"); }), 1u) << "a record without messages has its task";
    EXPECT_EQ(count([](v1::Filter* f) { f->set_max_tokens(8); }), 20u);
    EXPECT_EQ(count([](v1::Filter* f) { f->set_min_tokens(9); }), 40u);
    EXPECT_EQ(count([](v1::Filter* f) {
                f->set_prompt("Be brief.\nWhat is 1?");
                f->set_max_tokens(8);
              }),
              7u);
    v1::SampleRequest sample = MakeSample(60, 20);
    sample.mutable_filter()->set_prompt("Be brief.\nWhat is 1?");
    const auto drawn = store_->Sample(sample);
    ASSERT_TRUE(drawn.ok()) << drawn.status().message();
    EXPECT_EQ(drawn->candidates(), 20u);
    for (const uint64_t number : drawn->numbers()) EXPECT_EQ((number - 1) % 2, 1u);
    Open();
  }
}

TEST_F(StoreTest, SamplingDependsOnTheSetOfRecordsNotOnTheirOrder) {
  std::vector<v1::Trajectory> all;
  for (int i = 0; i < 50; ++i) all.push_back(MakeTrajectory(StrCat("u", i), static_cast<float>(i % 7)));
  ASSERT_TRUE(store_->Insert(MakeInsert(all)).ok());
  auto other = *Store::Open(JoinPath(folder_.path(), "other"));
  std::reverse(all.begin(), all.end());
  for (const v1::Trajectory& t : all) ASSERT_TRUE(other->Insert(MakeInsert({t})).ok());
  for (uint64_t step = 0; step < 10; ++step) {
    v1::SampleRequest request = MakeSample(50, 8, 99, step);
    request.set_top_fraction(step % 2 == 0 ? 0 : 0.3f);
    EXPECT_EQ(Uids(*store_->Sample(request)), Uids(*other->Sample(request)));
  }
}

TEST_F(StoreTest, SamplingIsPure) {
  std::vector<v1::Trajectory> first;
  for (int i = 0; i < 40; ++i)
    first.push_back(MakeTrajectory(StrCat("u", i), 0, i < 25 ? v1::SOURCE_REAL : v1::SOURCE_GENERATED));
  ASSERT_TRUE(store_->Insert(MakeInsert(first)).ok());
  std::vector<std::string> before;
  std::vector<v1::SampleRequest> requests;
  for (uint64_t step = 0; step < 6; ++step) {
    v1::SampleRequest request = MakeSample(40, 10, 7, step);
    if (step % 2 == 1) {
      request.clear_step();
      request.clear_count();
      for (const v1::DataClass data_class : {v1::DATA_CLASS_REAL, v1::DATA_CLASS_UNVERIFIED}) {
        v1::SamplePart& part = *request.add_parts();
        part.set_data_class(data_class);
        part.set_first(5 * step);
        part.set_count(5);
      }
    }
    requests.push_back(request);
    before.push_back(store_->Sample(request)->SerializeAsString());
  }
  // Later records, other requests in between, and a new process change nothing.
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory(StrCat("later", i))})).ok());
  ASSERT_TRUE(store_->Sample(MakeSample(80, 10)).ok());
  for (int pass = 0; pass < 2; ++pass) {
    for (size_t i = requests.size(); i-- > 0;) EXPECT_EQ(store_->Sample(requests[i])->SerializeAsString(), before[i]);
    Open();
  }
  EXPECT_NE(Uids(*store_->Sample(MakeSample(40, 10, 7, 0))), Uids(*store_->Sample(MakeSample(40, 10, 8, 0))));
}

TEST_F(StoreTest, EpochsPassOverEveryRecord) {
  std::vector<v1::Trajectory> all;
  for (int i = 0; i < 24; ++i) all.push_back(MakeTrajectory(StrCat("u", i)));
  ASSERT_TRUE(store_->Insert(MakeInsert(all)).ok());
  std::multiset<std::string> seen;
  for (uint64_t step = 0; step < 6; ++step)
    for (const std::string& uid : Uids(*store_->Sample(MakeSample(24, 8, 3, step)))) seen.insert(uid);
  for (const v1::Trajectory& t : all) EXPECT_EQ(seen.count(t.uid()), 2u) << t.uid();
}

TEST_F(StoreTest, ReadersAndWritersAtOnce) {
  std::atomic<bool> stop{false};
  ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory("first")})).ok());
  std::thread reader([&] {
    for (uint64_t step = 0; !stop; ++step) {
      EXPECT_TRUE(store_->Sample(MakeSample(store_->watermark(), 4, 1, step)).ok());
      EXPECT_TRUE(store_->Stats({}).ok());
    }
  });
  std::vector<std::thread> writers;
  for (int w = 0; w < 3; ++w)
    writers.emplace_back([&, w] {
      for (int i = 0; i < 20; ++i)
        EXPECT_TRUE(
            store_->Insert(MakeInsert({MakeTrajectory(StrCat(w, "-", i)), MakeTrajectory(StrCat("same-", i))})).ok());
    });
  for (std::thread& writer : writers) writer.join();
  stop = true;
  reader.join();
  EXPECT_EQ(store_->watermark(), 81u);
  EXPECT_EQ(store_->Stats({})->duplicates(), 40u);
  ExpectSound(81);
}

}  // namespace
}  // namespace quern
