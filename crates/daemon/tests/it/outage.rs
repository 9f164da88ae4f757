//! The KMS away, back, rotated, removed.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use kms_core::{KeyStore as _, KmsErrorKind};
use serde_json::{Value, json};
use testkit::fake_kms::FakeServer;
use testkit::late::Late;

use crate::world::{KMS, Running, TOKEN, World, held, set_vault, soon};

#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_without_its_kms_and_opens_when_it_is_back() {
    let world = World::new();
    let node = world.start_with_kms().await;
    for n in 0..30 {
        node.post("/v1/filesystems", &json!({"name": format!("fs{n}")})).await;
    }
    node.stop().await;
    world.kms().set_down(Some(KmsErrorKind::Sealed));
    let node = world.start().await;
    let status = node.get("/v1/status").await;
    assert_eq!(status["filesystems"]["unlocked"], 0, "{status}");
    let is_sealed = |fs: &Value| fs["problem"]["code"] == "kms-sealed";
    let fs = node.until("/v1/filesystems/fs7", is_sealed).await;
    assert_eq!(
        (&fs["state"], &fs["problem"]["exit"]),
        (&json!("locked"), &json!("kms-unreachable"))
    );
    let create = json!({"name": "another"});
    let refused = node.refused(503, "POST", "/v1/filesystems", &create).await;
    assert_eq!(refused["exit"], "kms-unreachable");
    assert!(!world.path("state/filesystems/another").exists());
    assert_eq!(node.get("/v1/kms").await["configured"]["problem"]["code"], "kms-sealed");

    world.kms().set_down(None);
    let back = Instant::now();
    let asked = world.kms().asked("unwrap");
    node.until("/v1/status", |status| status["filesystems"]["unlocked"] == 30).await;
    assert!(back.elapsed() < Duration::from_secs(3), "{:?}", back.elapsed());
    assert!(world.kms().asked("unwrap") - asked <= 32, "each key is asked for once");
    node.stop().await;
}

#[tokio::test]
async fn a_kms_that_fails_and_comes_back_is_on_record() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let warnings = async || {
        let page = node.get("/v1/audit?action=kms.warning").await;
        let lines = page["lines"].as_array().unwrap().iter();
        let of = |line: &Value| format!("{} {}", line["outcome"], line["detail"]).replace('"', "");
        lines.map(of).filter(|line| line.contains("kms-denied")).collect::<Vec<_>>()
    };
    assert_eq!(warnings().await, Vec::<String>::new());
    world.kms().set_down(Some(KmsErrorKind::Denied));
    for _ in 0..2 {
        node.get("/v1/kms").await;
    }
    let [begun] = &warnings().await[..] else { panic!("{:?}", warnings().await) };
    assert!(begun.starts_with("begun kms-denied: "), "{begun}");
    world.kms().set_down(None);
    node.get("/v1/kms").await;
    assert!(warnings().await.contains(&"done kms-denied: it is so no more".to_owned()));
    node.stop().await;
}

#[tokio::test]
async fn that_it_answers_again_is_told_once_filesystems_are_open() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    node.stop().await;
    world.kms().set_down(Some(KmsErrorKind::Unreachable));
    let node = world.start().await;
    let problem = |status: &Value| status["kms"]["configured"]["problem"].clone();
    node.until("/v1/status", |status| problem(status)["code"] == "kms-unreachable").await;
    world.kms().set_down(None);
    let begun = tokio::time::Instant::now();
    node.until("/v1/filesystems/home", |fs| fs["state"] == "unlocked").await;
    node.until("/v1/status", |status| problem(status).is_null()).await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    node.stop().await;
}

/// Nobody else looks at it within five minutes.
#[tokio::test]
async fn what_a_check_or_a_rehearsal_is_refused_is_told_from_then_on() {
    for path in ["/v1/kms/check", "/v1/kms/rehearse"] {
        let world = World::new();
        let node = world.start_with_kms().await;
        let problem = |status: &Value| status["kms"]["configured"]["problem"].clone();
        node.until("/v1/status", |status| problem(status).is_null()).await;
        world.kms().set_down(Some(KmsErrorKind::Denied));
        node.ask("POST", path, "null").await;
        node.until("/v1/status", |status| problem(status)["code"] == "kms-denied").await;
        node.stop().await;
    }
}

/// The value of a metric with these labels, as they stand there.
async fn metric(node: &Running, metric: &str) -> Option<f64> {
    let text = node.ask("GET", "/metrics", "").await.body;
    let mut lines = text.as_str().unwrap().lines();
    lines.find_map(|line| line.strip_prefix(metric)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn a_kms_that_does_not_open_what_it_wrapped_is_not_up_and_is_looked_at_each_minute() {
    const MINUTES: u64 = 60;
    let world = World::new();
    let own = world.kms_at(&format!("{KMS}/own"));
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    node.post("/v1/filesystems", &json!({"name": "mine", "kms_key": "own"})).await;
    node.stop().await;
    for (replaced, up, own_up) in [(&own, 1.0, 0.0), (&world.kms(), 0.0, 0.0)] {
        replaced.recreate();
        let node = world.start().await;
        let kms = node.get("/v1/kms").await["configured"].clone();
        assert_eq!(kms["problem"], Value::Null, "{kms}");
        assert_eq!(
            (&kms["does_all"], &kms["own_keys"][0]["does_all"]),
            (&json!(up > 0.0), &json!(false)),
            "{kms}"
        );
        assert_eq!(metric(&node, "coffer_kms_up").await, Some(up));
        assert_eq!(
            metric(&node, r#"coffer_own_master_key_up{master_key="own"}"#).await,
            Some(own_up)
        );
        let succeeded = metric(&node, "coffer_kms_last_success_timestamp_seconds").await;
        assert_eq!(succeeded.is_some(), up > 0.0, "{succeeded:?}");
        tokio::time::pause();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let before = world.kms().asked("lookup");
        tokio::time::sleep(Duration::from_secs(MINUTES * 60)).await;
        let looks = world.kms().asked("lookup") - before;
        tokio::time::resume();
        assert!((MINUTES - 5..=MINUTES + 5).contains(&looks), "{looks}");
        node.stop().await;
    }
}

#[tokio::test]
async fn while_the_kms_is_away_no_master_key_of_a_filesystem_is_up() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "mine", "kms_key": "own"})).await;
    for (down, up) in [
        (None, 1.0),
        (Some(KmsErrorKind::Unreachable), 0.0),
        (None, 1.0),
        (Some(KmsErrorKind::Sealed), 0.0),
    ] {
        world.kms().set_down(down);
        let kms = node.get("/v1/kms").await["configured"].clone();
        let own = &kms["own_keys"][0];
        assert_eq!(
            (&own["does_all"], &own["latest_version"]),
            (&json!(up > 0.0), &json!(1)),
            "{kms}"
        );
        for name in ["coffer_kms_up", r#"coffer_own_master_key_up{master_key="own"}"#] {
            assert_eq!(metric(&node, name).await, Some(up), "{name}");
        }
    }
    node.stop().await;
}

/// How often the KMS was asked, where it was asked for one key at most at once.
fn requests(kms: &FakeServer) -> u64 {
    ["read", "lookup", "renew", "wrap", "unwrap", "rewrap"].map(|of| kms.asked(of)).iter().sum()
}

#[tokio::test]
async fn a_node_at_rest_asks_its_kms_no_more_than_once_a_minute() {
    const HOURS: u64 = 8;
    let lives = [15 * 60, 3600, 768 * 3600];
    for (token_life, own) in
        lives.into_iter().zip([0, 0, 0]).chain(lives.into_iter().zip([20, 1, 5]))
    {
        let world = World::new();
        world.kms().set_token_life(Duration::from_secs(token_life));
        let node = world.start_with_kms().await;
        for name in ["a", "b"] {
            node.post("/v1/filesystems", &json!({"name": name})).await;
        }
        for n in 0..own {
            let create = json!({"name": format!("own{n}"), "kms_key": format!("own{n}")});
            node.post("/v1/filesystems", &create).await;
        }
        node.until("/v1/status", |status| status["filesystems"]["unlocked"] == 2 + own).await;
        tokio::time::pause();
        // What the start and the new configuration have asked for has been answered by then.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let before = requests(&world.kms());
        tokio::time::sleep(Duration::from_secs(HOURS * 3600)).await;
        let asked = requests(&world.kms()) - before;
        tokio::time::resume();
        let with = format!("with a token that lives {token_life} s, and {own} keys of their own");
        assert!(asked <= HOURS * 60, "{asked} requests {with}");
        assert!(asked >= HOURS * if own > 0 { 30 } else { 36 }, "{asked} {with}: it does look");
        let left = node.get("/v1/kms").await["configured"]["credential"]["seconds_left"].clone();
        assert!(left.as_u64().unwrap() >= token_life / 3, "{left}: it was renewed");
        node.stop().await;
    }
}

#[tokio::test]
async fn many_locked_filesystems_make_no_stampede() {
    stampede(|_| "k".to_owned(), MANY + 1..=MANY + 2).await;
}

/// Each master key is tried with a key, and its canary may be looked at.
#[tokio::test]
async fn many_with_master_keys_of_their_own_make_no_stampede_either() {
    stampede(|n| format!("own{n}"), 2 * MANY..=3 * MANY + 2).await;
}

const MANY: u64 = 100;

/// Many filesystems whose KMS is away and comes back; `at_last` is how many keys it is asked for then.
async fn stampede(master_key: fn(u64) -> String, at_last: RangeInclusive<u64>) {
    let world = World::new();
    let node = world.start_with_kms().await;
    for n in 0..MANY {
        let create = json!({"name": format!("fs{n}"), "kms_key": master_key(n)});
        node.post("/v1/filesystems", &create).await;
    }
    node.stop().await;
    world.kms().set_down(Some(KmsErrorKind::Unreachable));
    let node = world.start().await;
    let is_away = |fs: &Value| fs["problem"]["code"] == "kms-unreachable";
    node.until("/v1/filesystems/fs7", is_away).await;
    tokio::time::pause();
    let before = world.kms().asked("unwrap");
    tokio::time::sleep(Duration::from_secs(600)).await;
    let asked = world.kms().asked("unwrap") - before;
    // A random part of a second lies between two tries, of all filesystems together, and each is for one key.
    assert!((600..2000).contains(&asked), "{asked} keys were asked for in ten minutes");

    world.kms().set_down(None);
    let before = world.kms().asked("unwrap");
    tokio::time::sleep(Duration::from_secs(2)).await;
    tokio::time::resume();
    let status = node.get("/v1/status").await;
    assert_eq!(status["filesystems"]["unlocked"], MANY, "{status}");
    // The key that it was tried with, and the canary of a look.
    let asked = world.kms().asked("unwrap") - before;
    assert!(at_last.contains(&asked), "{asked}: each key is asked for once");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rewrapped_and_put_under_local_wrapping() {
    let world = World::new();
    let node = world.start_with_kms().await;
    for name in ["a", "b"] {
        node.post("/v1/filesystems", &json!({"name": name})).await;
    }
    world.kms().rotate();
    let job = node.post("/v1/kms/rewrap", &Value::Null).await;
    assert_eq!(job["kind"], "rewrap");
    let job = node.ended(&job).await;
    assert_eq!((&job["state"], &job["progress"]["items"]), (&json!("done"), &json!(2)), "{job}");
    let kms = node.get("/v1/kms").await;
    assert_eq!(
        kms["keys"],
        json!([{
            "kind": "vault", "base_url": KMS, "transit_path": "transit", "master_key": "k",
            "version": 2, "keys": 2, "canary": true,
        }]),
        "{kms}"
    );
    assert_eq!(kms["configured"]["lowest_needed"], 2, "{kms}");

    let change = node.ok("DELETE", "/v1/kms?allow_downgrade=true", &Value::Null).await;
    assert_eq!(
        (&change["change"], &change["job"]["kind"]),
        (&json!("downgrading"), &json!("downgrade"))
    );
    assert_eq!(node.ended(&change["job"]).await["state"], "done");
    let kms = node.get("/v1/kms").await;
    assert_eq!((&kms["configured"], &kms["exposed_keys"]), (&Value::Null, &json!(2)), "{kms}");
    assert_eq!(kms["findings"][0]["code"], "keys-exposed");
    node.stop().await;
    world.kms().set_down(Some(KmsErrorKind::Unreachable));
    let node = world.start().await;
    node.until("/v1/status", |status| status["filesystems"]["unlocked"] == 2).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_has_met_is_seen_by_status_too() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let answers = |status: &Value| status["kms"]["configured"]["problem"] == Value::Null;
    node.until("/v1/status", answers).await;
    world.kms().set_down(Some(KmsErrorKind::Denied));
    node.refused(502, "POST", "/v1/filesystems", &json!({"name": "a"})).await;
    node.until("/v1/status", |status| !answers(status)).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_one_filesystem_is_rewrapped_locked_or_not() {
    let world = World::new();
    let node = world.start_with_kms().await;
    for name in ["a", "b"] {
        node.post("/v1/filesystems", &json!({"name": name})).await;
    }
    world.kms().rotate();
    node.post("/v1/filesystems/a/lock", &json!({})).await;
    let of_a = json!({"filesystem": "a"});
    node.refused(404, "POST", "/v1/kms/rewrap", &json!({"filesystem": "nobody"})).await;
    node.refused(400, "POST", "/v1/kms/rewrap", &json!({"filesystem": "_"})).await;
    let job = node.post("/v1/kms/rewrap", &of_a).await;
    assert_eq!((&job["kind"], &job["filesystem"]), (&json!("rewrap"), &json!("a")), "{job}");
    assert_eq!(node.ended(&job).await["state"], "done");
    for (name, version) in [("a", 2), ("b", 1)] {
        let filesystem = node.get(&format!("/v1/filesystems/{name}")).await;
        assert_eq!(filesystem["wrapped_by"]["version"], version, "{filesystem}");
    }

    // One that the node died under goes on, though its filesystem stays locked.
    world.kms().rotate();
    let mut first_key = world.kms().hold("rewrap");
    let job = node.post("/v1/kms/rewrap", &of_a).await;
    first_key.reached().await;
    world.kms().set_down(Some(KmsErrorKind::Unreachable));
    drop(first_key);
    node.stop().await;
    world.kms().set_down(None);
    let node = world.start().await;
    assert_eq!(node.ended(&job).await["state"], "done");
    let filesystem = node.get("/v1/filesystems/a").await;
    assert_eq!(
        (&filesystem["wrapped_by"]["version"], &filesystem["state"]),
        (&json!(3), &json!("locked"))
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrap_that_waits_leaves_its_filesystem_to_other_jobs() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "a"})).await;
    world.kms().rotate();
    let mut first_key = world.kms().hold("rewrap");
    let rewrap = node.post("/v1/kms/rewrap", &json!({"filesystem": "a"})).await;
    first_key.reached().await;
    let verify = node.post("/v1/filesystems/a/verify", &json!({})).await;
    assert_eq!(node.ended(&verify).await["state"], "done");
    drop(first_key);
    assert_eq!(node.ended(&rewrap).await["state"], "done");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrap_that_loses_its_kms_goes_on_when_it_is_back() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "a"})).await;
    world.kms().rotate();
    let job = node.post("/v1/kms/rewrap", &Value::Null).await;
    node.ended(&job).await;
    world.kms().rotate();
    // Recorded, and the node ends before it has done anything.
    let job = node.post("/v1/kms/rewrap", &Value::Null).await;
    world.kms().set_down(Some(KmsErrorKind::Unreachable));
    node.stop().await;
    let node = world.start().await;
    world.kms().set_down(None);
    assert_eq!(node.ended(&job).await["state"], "done");
    assert_eq!(node.get("/v1/filesystems/a").await["wrapped_by"]["version"], 3);
    node.stop().await;
}

/// A rewrap that has asked the KMS for its first key, which answers when the last is dropped; the job, and its path.
async fn rewrapping(world: &World, node: &Running) -> (Value, String, Late) {
    node.post("/v1/filesystems", &json!({"name": "a"})).await;
    world.kms().rotate();
    let mut first_key = world.kms().hold("rewrap");
    let job = node.post("/v1/kms/rewrap", &Value::Null).await;
    first_key.reached().await;
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    (job, path, first_key)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrap_whose_kms_went_away_goes_on_by_itself_and_by_the_same_command() {
    for by_itself in [true, false] {
        let world = World::new();
        let node = world.start_with_kms().await;
        let (job, path, first_key) = rewrapping(&world, &node).await;
        world.kms().set_down(Some(KmsErrorKind::Unreachable));
        drop(first_key);
        let waiting = node.until(&path, |job| job["state"] == "waiting").await;
        assert_eq!(waiting["problem"]["code"], "kms-unreachable", "{waiting}");
        if !by_itself {
            assert_eq!(node.post("/v1/kms/rewrap", &Value::Null).await["id"], job["id"]);
        }
        world.kms().set_down(None);
        node.until(&path, |job| job["state"] == "done").await;
        assert_eq!(node.get("/v1/filesystems/a").await["wrapped_by"]["version"], 2);
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrap_that_the_kms_refuses_waits_and_says_so_wherever_one_looks() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let (job, path, first_key) = rewrapping(&world, &node).await;
    world.kms().set_down(Some(KmsErrorKind::Denied));
    drop(first_key);
    let waiting = node.until(&path, |job| job["state"] == "waiting").await;
    let (exit, code) = (&waiting["problem"]["exit"], &waiting["problem"]["code"]);
    assert_eq!((exit, code), (&json!("kms-refused"), &json!("kms-denied")), "{waiting}");
    let status = node.get("/v1/status").await;
    assert_eq!(status["findings"][0]["code"], "job-waits", "{status}");
    // Tried again meanwhile, it is recorded once.
    let record = format!("job/{}", job["id"].as_str().unwrap());
    let recorded = world.store().get(&record).await.unwrap();
    node.post("/v1/kms/rewrap", &Value::Null).await;
    node.until(&path, |job| job["state"] == "waiting").await;
    assert_eq!(world.store().get(&record).await.unwrap(), recorded);
    world.kms().set_down(None);
    node.post("/v1/kms/rewrap", &Value::Null).await;
    assert_eq!(node.ended(&job).await["state"], "done");
    assert_eq!(node.get("/v1/status").await["findings"], json!([]));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrap_whose_master_key_was_replaced_says_what_lets_it_go_on() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let (_, path, first_key) = rewrapping(&world, &node).await;
    world.kms().recreate();
    drop(first_key);
    let waiting = node.until(&path, |job| job["problem"] != Value::Null).await;
    assert_eq!(waiting["state"], "waiting", "{waiting}");
    assert!(waiting["problem"]["cure"].to_string().contains("set-vault"), "{waiting}");
    let change = node.ok("PUT", "/v1/kms", &set_vault()).await;
    assert_eq!(node.ended(&change["job"]).await["state"], "done", "{change}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_for_its_filesystem_and_says_why() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let (job, begun) = held(&world, &node, 192 << 20).await;
    tokio::join!(node.stop(), soon(begun));
    world.kms().set_down(Some(KmsErrorKind::Sealed));
    let node = world.start().await;
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let says_why = |job: &Value| job["problem"]["detail"].to_string().contains("away");
    let waiting = node.until(&path, says_why);
    assert_eq!(waiting.await["state"], "waiting");
    assert_eq!(node.get("/v1/status").await["jobs_running"], 1);
    world.kms().set_down(None);
    assert_eq!(node.ended(&job).await["state"], "done");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_to_a_kms_that_is_gone_for_good_gives_way_to_another() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    let set = |url: &str| json!({"base_url": url, "master_key": "k", "token": TOKEN});
    let gone = world.kms_at("https://gone.example");
    let request = set("https://gone.example");
    let mut canary = gone.hold("wrap");
    let (moving, mut first_key) = tokio::join!(node.ok("PUT", "/v1/kms", &request), async {
        canary.reached().await;
        let first_key = gone.hold("wrap");
        drop(canary);
        first_key
    });
    first_key.reached().await;
    gone.set_down(Some(KmsErrorKind::Unreachable));
    drop(first_key);
    let stuck = format!("/v1/jobs/{}", moving["job"]["id"].as_str().unwrap());
    node.until(&stuck, |job| job["state"] == "waiting").await;

    let change = node.ok("PUT", "/v1/kms", &set("https://third.example")).await;
    assert_eq!(change["change"], "moving", "{change}");
    let job = node.ended(&change["job"]).await;
    assert_eq!(job["state"], "done", "{job}");
    let stuck = node.get(&stuck).await;
    assert_eq!(
        (&stuck["state"], &stuck["problem"]["code"]),
        (&json!("failed"), &json!("superseded"))
    );
    node.stop().await;
    let node = world.start().await;
    node.until("/v1/filesystems/home", |fs| fs["state"] == "unlocked").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_key_of_its_own_is_shown_apart_and_its_loss_told_before_it_is_felt() {
    let world = World::new();
    world.kms();
    let own = world.kms_at(&format!("{KMS}/tenant"));
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    let create = json!({"name": "a", "kms_key": "tenant"});
    own.set_down(Some(KmsErrorKind::Unreachable));
    let refused = node.refused(503, "POST", "/v1/filesystems", &create).await;
    assert_eq!(refused["exit"], "kms-unreachable");
    assert_eq!(node.get("/v1/filesystems/home").await["own_master_key"], Value::Null);
    assert!(!world.path("state/filesystems/a").exists());
    own.set_down(None);
    let made = node.post("/v1/filesystems", &create).await;
    assert_eq!(
        (&made["own_master_key"], &made["wrapped_by"]["master_key"]),
        (&json!("tenant"), &json!("tenant")),
        "{made}"
    );
    // The status asks no KMS: that there is another master key the node looked at by itself.
    let seen = |status: &Value| status["kms"]["configured"]["own_keys"][0]["latest_version"] == 1;
    let status = node.until("/v1/status", seen).await;
    let [key] = &status["kms"]["configured"]["own_keys"].as_array().unwrap()[..] else {
        panic!("{status}");
    };
    assert_eq!(
        (&key["master_key"], &key["filesystems"]),
        (&json!("tenant"), &json!(1)),
        "{status}"
    );
    let keys = &status["kms"]["keys"];
    let count =
        |master_key| keys.as_array().unwrap().iter().find(|n| n["master_key"] == master_key);
    assert_eq!(
        (&count("k").unwrap()["keys"], &count("tenant").unwrap()["keys"]),
        (&json!(1), &json!(1))
    );

    own.delete();
    let kms = node.get("/v1/kms").await;
    assert_eq!(kms["configured"]["problem"], Value::Null, "{kms}");
    assert_eq!(kms["configured"]["own_keys"][0]["problem"]["code"], "master-key-missing", "{kms}");
    assert_eq!(kms["findings"][0]["code"], "master-key-missing", "{kms}");
    node.stop().await;
    let node = world.start().await;
    let gone = |fs: &Value| fs["problem"]["code"] == "master-key-missing";
    node.until("/v1/filesystems/a", gone).await;
    node.until("/v1/filesystems/home", |fs| fs["state"] == "unlocked").await;

    // With its last filesystem it is not shown any more.
    node.ok("DELETE", "/v1/filesystems/a", &Value::Null).await;
    let status = node.get("/v1/status").await;
    assert_eq!(status["kms"]["configured"]["own_keys"], Value::Null, "{status}");
    assert_eq!(status["kms"]["findings"], json!([]), "{status}");
    node.stop().await;
}

#[tokio::test]
async fn a_rewrap_that_is_stopped_while_its_kms_is_silent_stays_stopped() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    world.kms().rotate();
    let mut asked = world.kms().hold("rewrap");
    let job = node.post("/v1/kms/rewrap", &Value::Null).await;
    asked.reached().await;
    let path = format!("/v1/jobs/{}/stop", job["id"].as_str().unwrap());
    assert_eq!(node.post(&path, &Value::Null).await["state"], "stopping");
    world.kms().set_down(Some(KmsErrorKind::Unreachable));
    drop(asked);
    assert_eq!(node.ended(&job).await["state"], "stopped");
    world.kms().set_down(None);
    let again = node.post("/v1/kms/rewrap", &Value::Null).await;
    assert_eq!((&again["id"], &node.ended(&again).await["state"]), (&job["id"], &json!("done")));
    node.stop().await;
}

#[tokio::test]
async fn what_a_move_leaves_on_the_old_kms_is_told_and_kept_reachable() {
    const NEW: &str = "http://new";
    let world = World::new();
    let (old, new) = (world.kms(), world.kms_at(NEW));
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "left"})).await;
    old.rotate();
    node.post("/v1/filesystems", &json!({"name": "moved"})).await;
    node.ok("POST", "/v1/filesystems/left/lock", &json!({})).await;
    old.set_token_life(Duration::from_secs(3));
    // By then all was seen to open.
    let mut canary = new.hold("wrap");
    let set = json!({"base_url": NEW, "master_key": "k", "token": "another token"});
    let (change, ()) = tokio::join!(node.ok("PUT", "/v1/kms", &set), async {
        canary.reached().await;
        old.set_minimum(2);
        drop(canary);
    });
    let job = node.ended(&change["job"]).await;
    assert_eq!(job["state"], "partly", "{job}");

    let told = |status: &Value, code: &str| -> Option<String> {
        let found = status["kms"]["findings"].as_array().unwrap().iter();
        let mut found: Vec<_> = found.filter(|it| it["code"] == code).collect();
        assert!(found.len() <= 1, "{code} is told twice");
        found.pop().map(|it| it["what"].to_string())
    };
    let status = node.get("/v1/status").await;
    let left = told(&status, "keys-left-behind").unwrap();
    assert!(left.contains("the keys of left still hang on the master key k at"), "{left}");
    assert_eq!(told(&status, "old-kms-ends"), None);
    let renewed = old.asked("renew");
    soon_true(|| old.asked("renew") > renewed).await;

    old.set_down(Some(KmsErrorKind::Denied));
    node.until("/v1/status", |status| told(status, "old-kms-ends").is_some()).await;
    old.set_down(None);
    old.set_minimum(1);
    let job = node.ended(&node.post("/v1/kms/rewrap", &Value::Null).await).await;
    assert_eq!(job["state"], "done", "{job}");
    assert_eq!(told(&node.get("/v1/status").await, "keys-left-behind"), None);
    node.stop().await;
}

async fn soon_true(is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
