//! Server-sent events: of one job, and of the node as a whole.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::world::{Running, World, held};

/// Longer than any event takes.
const SOON: Duration = Duration::from_secs(20);

/// A stream of events that is read line by line: each event is a chunk of its own.
struct Events(BufReader<UnixStream>);

impl Events {
    async fn of(node: &Running, path: &str) -> Self {
        let mut events = Self(BufReader::new(node.send_with("", "GET", path, "").await));
        assert!(events.line().await.unwrap().contains(" 200 "));
        let mut head = String::new();
        while let Some(line) = events.line().await.filter(|line| !line.is_empty()) {
            head.push_str(&line);
        }
        assert!(head.contains("content-type: text/event-stream"), "{head}");
        events
    }

    /// `None` at the end of the stream.
    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = timeout(SOON, self.0.read_line(&mut line)).await.unwrap().unwrap();
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// The next event and its data; `None` at the end of the stream.
    async fn next(&mut self) -> Option<(String, String)> {
        let mut name = None;
        while let Some(line) = self.line().await {
            if let Some(event) = line.strip_prefix("event: ") {
                name = Some(event.to_owned());
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return Some((name.take().unwrap(), data.to_owned()));
            }
        }
        None
    }

    async fn next_job(&mut self) -> (String, Value) {
        let (name, data) = self.next().await.unwrap();
        (name, serde_json::from_str(&data).unwrap())
    }
}

fn events_of(job: &Value) -> String {
    format!("/v1/jobs/{}/events", job["id"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_a_job_sees_it_go_on_and_end() {
    let world = World::new();
    let node = world.start().await;
    let (job, begun) = held(&world, &node, 40 << 20).await;
    let mut followers = Vec::new();
    for _ in 0..3 {
        followers.push(Events::of(&node, &events_of(&job)).await);
    }
    for follower in &mut followers {
        let (name, shown) = follower.next_job().await;
        assert_eq!(
            (&*name, &shown["id"], &shown["state"]),
            ("progress", &job["id"], &json!("running"))
        );
    }
    let since = Instant::now();
    drop(begun);
    for mut follower in followers {
        let mut times = 0;
        let last = loop {
            let (name, shown) = follower.next_job().await;
            if name == "end" {
                break shown;
            }
            assert_eq!(name, "progress");
            times += 1;
        };
        assert_eq!((&last["state"], &last["problem"]), (&json!("done"), &Value::Null), "{last}");
        assert_eq!(last["progress"]["items"], last["progress"]["total_items"]);
        assert!(follower.next().await.is_none(), "the stream ends with the job");
        let most = since.elapsed().as_millis() / 250 + 2;
        assert!(times <= most, "{times} in {:?}", since.elapsed());
    }

    let mut late = Events::of(&node, &events_of(&job)).await;
    assert_eq!(
        late.next_job().await,
        ("end".to_owned(), node.get(&events_of(&job).replace("/events", "")).await)
    );
    assert!(late.next().await.is_none());
    for (status, path) in
        [(404, "/v1/jobs/6f1c2d3e-0a1b-4c5d-8e9f-001122334455/events"), (400, "/v1/jobs/x/events")]
    {
        node.refused(status, "GET", path, &Value::Null).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_stopped_ends_for_those_who_follow_it() {
    let world = World::new();
    let node = world.start().await;
    let (job, begun) = held(&world, &node, 10).await;
    let mut follower = Events::of(&node, &events_of(&job)).await;
    assert_eq!(follower.next_job().await.1["state"], "running");
    // Whoever goes away takes nothing along.
    drop(Events::of(&node, &events_of(&job)).await);
    node.post(&format!("/v1/jobs/{}/stop", job["id"].as_str().unwrap()), &Value::Null).await;
    assert_eq!(follower.next_job().await.1["state"], "stopping");
    drop(begun);
    let last = loop {
        let (name, shown) = follower.next_job().await;
        if name == "end" {
            break shown;
        }
        // Its pace changes meanwhile.
        assert_eq!((&*name, &shown["state"]), ("progress", &json!("stopping")));
    };
    assert_eq!(last["state"], "stopped");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_does_not_hold_up_the_end_of_a_node() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    world.kms().rotate();
    let mut begun = world.kms().hold("rewrap");
    let job = node.post("/v1/kms/rewrap", &Value::Null).await;
    begun.reached().await;
    world.kms().set_down(Some(kms_core::KmsErrorKind::Unreachable));
    drop(begun);
    let mut of_job = Events::of(&node, &events_of(&job)).await;
    let mut of_node = Events::of(&node, "/v1/events").await;
    while of_job.next_job().await.1["state"] != "waiting" {}
    of_node.next().await.unwrap();
    timeout(Duration::from_secs(10), node.stop()).await.unwrap();
    while let Some((name, _)) = of_job.next().await {
        assert_eq!(name, "progress");
    }
    while of_node.next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_who_show_the_node_are_told_of_each_change() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let mut all = Vec::new();
    for _ in 0..200 {
        all.push(Events::of(&node, "/v1/events").await);
    }
    let mut before = String::new();
    for follower in &mut all {
        let (name, state) = follower.next().await.unwrap();
        assert_eq!((&*name, state.len()), ("changed", 16));
        before = state;
    }
    let changes: [(&str, Value); 3] = [
        ("/v1/filesystems", json!({"name": "home"})),
        ("/v1/filesystems/home/lock", json!({})),
        ("/v1/kms/rewrap", Value::Null),
    ];
    for (path, body) in changes {
        node.post(path, &body).await;
        for follower in &mut all {
            let after = loop {
                let (_, state) = follower.next().await.unwrap();
                if state != before {
                    break state;
                }
            };
            assert_eq!(after.len(), 16);
        }
        // What came of it may follow.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut last = String::new();
        for follower in &mut all {
            while let Ok(event) = timeout(Duration::from_millis(1), follower.next()).await {
                last = event.unwrap().1;
            }
        }
        if !last.is_empty() {
            before = last;
        }
    }
    // The life of the token runs down meanwhile, which is no change.
    let quiet = timeout(Duration::from_secs(3), all[0].next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    node.stop().await;
}
