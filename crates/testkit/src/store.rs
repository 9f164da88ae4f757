//! What every [`KeyStore`] promises, as a suite that each implementation runs.

use std::sync::Arc;

use kms_core::{Check, Commit, KeyStore, Record, StoreError, Version};

/// Holds stores to the trait's words. `make` gives an empty one each time. Panics at the first
/// promise that is broken. Run it on a multi-threaded runtime: it races commits.
pub async fn key_store_contract<S: KeyStore + 'static>(make: impl AsyncFn() -> S) {
    let make = async || Arc::new(make().await) as Arc<dyn KeyStore>;
    an_empty_store_has_nothing(&*make().await).await;
    what_is_put_is_read(&*make().await).await;
    what_is_deleted_is_gone(&*make().await).await;
    versions_count_commits_upward(&*make().await).await;
    absent_holds_for_new_records_only(&*make().await).await;
    unchanged_holds_until_the_next_write(&*make().await).await;
    a_conflict_leaves_nothing(&*make().await).await;
    checks_may_concern_what_is_written(&*make().await).await;
    a_commit_of_checks_only_changes_nothing(&*make().await).await;
    pages_are_in_byte_order(&*make().await).await;
    pages_follow_each_other(&*make().await).await;
    limits_hold(&*make().await).await;
    one_of_many_racing_commits_wins(make().await).await;
    racing_commits_lose_no_increment(make().await).await;
    a_page_is_one_moment(make().await).await;
}

/// Holds a store on disk to its memory: `open` opens the same place each time, empty at first, and the store
/// that it gave before has been dropped.
pub async fn key_store_keeps_everything<S: KeyStore>(open: impl AsyncFn() -> S) {
    let mut last = Version(0);
    for round in 0..4 {
        let store = open().await;
        let page = store.list("", None, 100).await.unwrap();
        assert_eq!(page.records.len(), 2 * round, "round {round}");
        for record in &page.records {
            assert!(record.value == record.key.repeat(round_of(&record.key) * 3000).into_bytes());
            assert!(record.version <= last);
        }
        let mut commit = Commit::new().put("passing", vec![0; 20_000]);
        for which in ["a", "b"] {
            let key = format!("{which}{}", round + 1);
            commit = commit.absent(&key).put(&key, key.repeat((round + 1) * 3000).into_bytes());
        }
        let put = store.commit(commit).await.unwrap();
        assert!(put > last, "versions go on where they were: {put:?} after {last:?}");
        last = store.commit(Commit::new().delete("passing")).await.unwrap();
        assert!(last > put);
    }
}

fn round_of(key: &str) -> usize {
    key[1..].parse().unwrap()
}

async fn put(store: &dyn KeyStore, key: &str, value: &str) -> Version {
    store.commit(Commit::new().put(key, value.into())).await.unwrap()
}

async fn get(store: &dyn KeyStore, key: &str) -> Record {
    store.get(key).await.unwrap().unwrap_or_else(|| panic!("no record {key}"))
}

async fn keys(store: &dyn KeyStore) -> Vec<String> {
    let page = store.list("", None, 1000).await.unwrap();
    page.records.into_iter().map(|record| record.key).collect()
}

fn assert_conflict(answer: Result<Version, StoreError>, at: &str) {
    match answer {
        Err(StoreError::Conflict { key }) => assert_eq!(key, at),
        other => panic!("a conflict at {at} was expected, not {other:?}"),
    }
}

async fn an_empty_store_has_nothing(store: &dyn KeyStore) {
    assert_eq!(store.get("fs/home").await.unwrap(), None);
    assert_eq!(store.list("", None, 10).await.unwrap(), kms_core::Page::default());
}

async fn what_is_put_is_read(store: &dyn KeyStore) {
    let commit = Commit::new().put("fs/a", b"1".to_vec()).put("fs/ü", vec![]);
    let version = store.commit(commit).await.unwrap();
    assert_eq!(
        get(store, "fs/a").await,
        Record { key: "fs/a".into(), version, value: b"1".to_vec() }
    );
    assert_eq!(get(store, "fs/ü").await.value, b"");
    put(store, "fs/a", "22").await;
    assert_eq!(get(store, "fs/a").await.value, b"22");
    assert_eq!(store.get("fs/").await.unwrap(), None, "a prefix is no key");
}

async fn what_is_deleted_is_gone(store: &dyn KeyStore) {
    put(store, "a", "1").await;
    put(store, "b", "2").await;
    store.commit(Commit::new().delete("a").delete("never there")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), None);
    assert_eq!(keys(store).await, ["b"]);
    store.commit(Commit::new().absent("a").put("a", b"again".to_vec())).await.unwrap();
    assert_eq!(get(store, "a").await.value, b"again");
}

async fn versions_count_commits_upward(store: &dyn KeyStore) {
    let first = put(store, "a", "1").await;
    assert!(first > Version(0), "0 is before every commit");
    let second =
        store.commit(Commit::new().put("b", vec![]).put("c", vec![]).delete("x")).await.unwrap();
    assert!(second > first);
    assert_eq!(get(store, "b").await.version, second, "one version for the whole commit");
    assert_eq!(get(store, "c").await.version, second);
    assert_eq!(get(store, "a").await.version, first, "what a commit does not name keeps its own");
    store.commit(Commit::new().delete("a")).await.unwrap();
    let again = put(store, "a", "1").await;
    assert!(again > second, "a record that returns is not taken for the one that went");
}

async fn absent_holds_for_new_records_only(store: &dyn KeyStore) {
    put(store, "a", "1").await;
    assert_conflict(store.commit(Commit::new().absent("a").put("a", vec![])).await, "a");
    store.commit(Commit::new().absent("b").put("b", vec![])).await.unwrap();
    assert_eq!(get(store, "a").await.value, b"1");
}

async fn unchanged_holds_until_the_next_write(store: &dyn KeyStore) {
    put(store, "a", "1").await;
    let read = get(store, "a").await;
    put(store, "b", "elsewhere").await;
    store.commit(Commit::new().unchanged(&read).put("c", vec![])).await.unwrap();

    put(store, "a", "1").await;
    assert_conflict(store.commit(Commit::new().unchanged(&read).put("d", vec![])).await, "a");
    let read = get(store, "a").await;
    store.commit(Commit::new().delete("a")).await.unwrap();
    assert_conflict(store.commit(Commit::new().unchanged(&read).put("d", vec![])).await, "a");
    put(store, "a", "1").await;
    assert_conflict(store.commit(Commit::new().unchanged(&read).put("d", vec![])).await, "a");

    let never = Commit {
        checks: vec![Check::Unchanged("never there".into(), Version(0))],
        ..Commit::default()
    };
    assert_conflict(store.commit(never.put("d", vec![])).await, "never there");
    assert_eq!(store.get("d").await.unwrap(), None);
}

async fn a_conflict_leaves_nothing(store: &dyn KeyStore) {
    put(store, "a", "1").await;
    put(store, "gone?", "1").await;
    let before = store.list("", None, 100).await.unwrap();
    let commit = Commit::new()
        .absent("new")
        .absent("a")
        .put("a", b"2".to_vec())
        .put("new", vec![])
        .delete("gone?");
    assert_conflict(store.commit(commit).await, "a");
    assert_eq!(store.list("", None, 100).await.unwrap(), before);
}

async fn checks_may_concern_what_is_written(store: &dyn KeyStore) {
    put(store, "a", "1").await;
    put(store, "b", "1").await;
    let (a, b) = (get(store, "a").await, get(store, "b").await);
    let commit = Commit::new().unchanged(&a).unchanged(&b).put("a", b"2".to_vec()).delete("b");
    store.commit(commit.clone()).await.unwrap();
    assert_eq!(get(store, "a").await.value, b"2");
    assert_eq!(store.get("b").await.unwrap(), None);
    assert_conflict(store.commit(commit).await, "a");
}

async fn a_commit_of_checks_only_changes_nothing(store: &dyn KeyStore) {
    let version = put(store, "a", "1").await;
    let read = get(store, "a").await;
    assert_eq!(store.commit(Commit::new().unchanged(&read).absent("b")).await.unwrap(), version);
    assert_conflict(store.commit(Commit::new().absent("a")).await, "a");
    assert_eq!(get(store, "a").await, read);
}

async fn pages_are_in_byte_order(store: &dyn KeyStore) {
    let names = ["a", "a/", "a/1", "a/10", "a/2", "a/Z", "a/z", "a/ü", "a0", "b", "ü"];
    let mut commit = Commit::new();
    for name in names.iter().rev() {
        commit = commit.put(*name, name.as_bytes().to_vec());
    }
    store.commit(commit).await.unwrap();
    assert_eq!(keys(store).await, names);
    let under = store.list("a/", None, 100).await.unwrap();
    assert!(!under.more);
    assert_eq!(
        under.records.iter().map(|r| r.key.as_str()).collect::<Vec<_>>(),
        ["a/", "a/1", "a/10", "a/2", "a/Z", "a/z", "a/ü"]
    );
    assert!(under.records.iter().all(|r| r.value == r.key.as_bytes()));
    assert!(store.list("c", None, 100).await.unwrap().records.is_empty());
}

async fn pages_follow_each_other(store: &dyn KeyStore) {
    let mut commit = Commit::new().put("ex", vec![]).put("g", vec![]);
    for n in 0..25 {
        commit = commit.put(format!("f/{n:02}"), vec![n]);
    }
    store.commit(commit).await.unwrap();

    for limit in [1, 7, 24, 25, 26] {
        let mut seen = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = store.list("f/", after.as_deref(), limit).await.unwrap();
            assert!(page.records.len() <= limit);
            seen.extend(page.records.iter().map(|r| r.value[0]));
            after = page.records.last().map(|r| r.key.clone()).or(after);
            if !page.more {
                break;
            }
        }
        assert_eq!(seen, (0..25).collect::<Vec<u8>>(), "pages of {limit}");
    }
    let from = |after| store.list("f/", Some(after), 1);
    assert_eq!(from("a").await.unwrap().records[0].key, "f/00", "before the prefix");
    assert_eq!(from("f/10x").await.unwrap().records[0].key, "f/11", "between two records");
    assert!(from("f/24").await.unwrap().records.is_empty(), "the last one");
    assert!(from("g").await.unwrap().records.is_empty(), "behind the prefix");
}

async fn limits_hold(store: &dyn KeyStore) {
    let (longest, largest) = ("k".repeat(Record::MAX_KEY), vec![7; Record::MAX_VALUE]);
    store.commit(Commit::new().put(&longest, largest.clone())).await.unwrap();
    assert!(get(store, &longest).await.value == largest);

    let bad = [
        Commit::new().put("k".repeat(Record::MAX_KEY + 1), vec![]),
        Commit::new().put("v", vec![7; Record::MAX_VALUE + 1]),
        Commit::new().put("", vec![]),
        Commit::new().put("nul\0", vec![]),
        Commit::new().put("twice", vec![1]).put("twice", vec![2]),
        Commit::new().put("twice", vec![1]).delete("twice"),
    ];
    for commit in bad {
        let shown = format!("{commit:?}");
        let answer = store.commit(commit.put("beside", vec![])).await;
        assert!(matches!(answer, Err(StoreError::Invalid { .. })), "{shown}: {answer:?}");
    }
    assert_eq!(keys(store).await, [longest], "nothing of a refused commit is done");
}

async fn one_of_many_racing_commits_wins(store: Arc<dyn KeyStore>) {
    put(&*store, "a", "1").await;
    let read = get(&*store, "a").await;
    let racers: Vec<_> = (0..16)
        .map(|n| {
            let (store, commit) = (Arc::clone(&store), Commit::new().unchanged(&read));
            tokio::spawn(async move {
                let commit = commit.put("a", vec![n]).put(format!("won/{n}"), vec![]);
                store.commit(commit).await.map(|_| n)
            })
        })
        .collect();
    let mut winners = Vec::new();
    for racer in racers {
        match racer.await.unwrap() {
            Ok(n) => winners.push(n),
            Err(e) => assert!(matches!(e, StoreError::Conflict { .. }), "{e:?}"),
        }
    }
    let [winner] = winners[..] else { panic!("one must win, not {winners:?}") };
    assert_eq!(get(&*store, "a").await.value, [winner]);
    assert_eq!(keys(&*store).await, ["a".to_owned(), format!("won/{winner}")]);
}

async fn racing_commits_lose_no_increment(store: Arc<dyn KeyStore>) {
    put(&*store, "count", "0").await;
    let racers: Vec<_> = (0..4)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut done = 0;
                while done < 5 {
                    let read = get(&*store, "count").await;
                    let count: u32 = String::from_utf8_lossy(&read.value).parse().unwrap();
                    let more = (count + 1).to_string().into_bytes();
                    match store.commit(Commit::new().unchanged(&read).put("count", more)).await {
                        Ok(_) => done += 1,
                        Err(e) => assert!(matches!(e, StoreError::Conflict { .. }), "{e:?}"),
                    }
                }
            })
        })
        .collect();
    for racer in racers {
        racer.await.unwrap();
    }
    assert_eq!(get(&*store, "count").await.value, b"20");
}

async fn a_page_is_one_moment(store: Arc<dyn KeyStore>) {
    let all =
        |n: u8| (0..10).fold(Commit::new(), |commit, at| commit.put(format!("{at}"), vec![n]));
    store.commit(all(0)).await.unwrap();
    let writer = tokio::spawn({
        let (store, all) = (Arc::clone(&store), all);
        async move {
            for n in 1..20 {
                store.commit(all(n)).await.unwrap();
            }
        }
    });
    while !writer.is_finished() {
        let page = store.list("", None, 10).await.unwrap();
        assert!(page.records.iter().all(|r| r.value == page.records[0].value), "{page:?}");
        assert!(page.records.iter().all(|r| r.version == page.records[0].version), "{page:?}");
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
}
