//! Jobs: stopped, taken up by the same command and by the next node, one at a time, and what they could not do.

use std::fs;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use kms_core::{Commit, KeyStore as _, KmsErrorKind};
use serde_json::{Value, json};
use testkit::tree;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::world::{Running, World, held, soon};

async fn started(world: &World, node: &Running, size: usize) -> Value {
    let (job, begun) = held(world, node, size).await;
    drop(begun);
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_command_takes_a_stopped_job_up() {
    let world = World::new();
    let node = world.start().await;
    let (job, begun) = held(&world, &node, 10).await;
    let again = json!({"source": world.path("source")});
    let same = node.post("/v1/filesystems/home/import", &again).await;
    assert_eq!(same["id"], job["id"], "the one that runs is answered");
    let other = json!({"target": world.path("target")});
    let busy = node.refused(409, "POST", "/v1/filesystems/home/export", &other).await;
    assert_eq!(busy["code"], "busy");
    node.refused(409, "POST", "/v1/filesystems/home/lock", &json!({})).await;
    node.refused(409, "DELETE", "/v1/filesystems/home", &Value::Null).await;

    let path = format!("/v1/jobs/{}/stop", job["id"].as_str().unwrap());
    assert_eq!(node.post(&path, &Value::Null).await["state"], "stopping");
    drop(begun);
    assert_eq!(node.ended(&job).await["state"], "stopped");
    let with_slash = json!({"source": format!("{}/", world.path("source").display())});
    let resumed = node.post("/v1/filesystems/home/import", &with_slash).await;
    assert_eq!((&resumed["id"], &resumed["resumed"]), (&job["id"], &json!(true)));
    assert_eq!(node.ended(&resumed).await["state"], "done");
    node.refused(409, "POST", &path, &Value::Null).await;
    // What has ended well is a new job when it is asked for again.
    let anew = node.post("/v1/filesystems/home/import", &again).await;
    assert_ne!(anew["id"], job["id"]);
    assert_eq!(node.ended(&anew).await["state"], "done");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_command_goes_on_with_a_job_that_is_about_to_stop() {
    let world = World::new();
    let node = world.start().await;
    let (job, begun) = held(&world, &node, 10).await;
    let path = format!("/v1/jobs/{}/stop", job["id"].as_str().unwrap());
    assert_eq!(node.post(&path, &Value::Null).await["state"], "stopping");
    let again = json!({"source": world.path("source")});
    let going_on = async { node.post("/v1/filesystems/home/import", &again).await };
    let (resumed, ()) = tokio::join!(going_on, soon(begun));
    assert_eq!(
        (&resumed["id"], &resumed["state"], &resumed["resumed"]),
        (&job["id"], &json!("running"), &json!(true))
    );
    let ended = node.ended(&resumed).await;
    assert_eq!((&ended["state"], &ended["resumed"]), (&json!("done"), &json!(true)), "{ended}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrap_that_is_about_to_stop_goes_on_too() {
    let world = World::new();
    let node = world.start_with_kms().await;
    for name in ["a", "b"] {
        node.post("/v1/filesystems", &json!({"name": name})).await;
    }
    world.kms().rotate();
    let mut first_key = world.kms().hold("rewrap");
    let job = node.post("/v1/kms/rewrap", &Value::Null).await;
    first_key.reached().await;
    let path = format!("/v1/jobs/{}/stop", job["id"].as_str().unwrap());
    assert_eq!(node.post(&path, &Value::Null).await["state"], "stopping");
    let going_on = async { node.post("/v1/kms/rewrap", &Value::Null).await };
    let (again, ()) = tokio::join!(going_on, soon(first_key));
    assert_eq!(again["id"], job["id"]);
    assert_eq!(node.ended(&again).await["state"], "done");
    for name in ["a", "b"] {
        let filesystem = node.get(&format!("/v1/filesystems/{name}")).await;
        assert_eq!(filesystem["wrapped_by"]["version"], 2, "{filesystem}");
    }
    node.stop().await;
}

/// Its copy of the store would be older than what a rewrap puts into the backing directories.
#[tokio::test(flavor = "multi_thread")]
async fn no_key_is_wrapped_anew_while_a_start_is_rehearsed() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    let copy = world.path("state/filesystems/home/coffer.key");
    let before = fs::read(&copy).unwrap();
    world.kms().rotate();
    let mut rehearsed = world.hold_rehearsal();
    let (_, job) = tokio::join!(node.ask("POST", "/v1/kms/rehearse", ""), async {
        rehearsed.reached().await;
        let job = node.post("/v1/kms/rewrap", &Value::Null).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let waits = node.get(&format!("/v1/jobs/{}", job["id"].as_str().unwrap())).await;
        assert_eq!(waits["state"], "running", "{waits}");
        assert_eq!(fs::read(&copy).unwrap(), before);
        drop(rehearsed);
        job
    });
    assert_eq!(node.ended(&job).await["state"], "done");
    assert_ne!(fs::read(&copy).unwrap(), before);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_another_one_followed_begins_anew() {
    let world = World::new();
    let node = world.start().await;
    let (job, begun) = held(&world, &node, 10).await;
    let path = format!("/v1/jobs/{}/stop", job["id"].as_str().unwrap());
    node.post(&path, &Value::Null).await;
    drop(begun);
    assert_eq!(node.ended(&job).await["state"], "stopped");
    tree::small_files(&world.path("other"), 10).unwrap();
    let other = json!({"source": world.path("other")});
    let other = node.post("/v1/filesystems/home/import", &other).await;
    assert_eq!(node.ended(&other).await["state"], "done");
    let again = json!({"source": world.path("source")});
    let anew = node.post("/v1/filesystems/home/import", &again).await;
    assert_ne!(anew["id"], job["id"]);
    let ended = node.ended(&anew).await;
    assert_eq!((&ended["state"], &ended["resumed"]), (&json!("done"), &json!(false)), "{ended}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_node_takes_up_what_was_running() {
    let world = World::new();
    let node = world.start().await;
    let (job, begun) = held(&world, &node, 192 << 20).await;
    tokio::join!(node.stop(), soon(begun));
    let node = world.start().await;
    let ended = node.ended(&job).await;
    assert_eq!((&ended["state"], &ended["resumed"]), (&json!("done"), &json!(true)), "{ended}");
    node.stop().await;
}

/// What a node leaves that died when an import had begun, beside which the filesystem was deleted; with `other` there is another
/// one of its name.
async fn outlived(world: &World, other: bool) -> Value {
    let node = world.start().await;
    let (job, begun) = held(world, &node, 1000).await;
    node.post("/v1/filesystems", &json!({"name": "other", "allow_no_kms": true})).await;
    tokio::join!(node.stop(), soon(begun));
    let there = world.store().get("fs/other").await.unwrap().unwrap();
    let text = String::from_utf8(there.value).unwrap();
    let renamed = text.replacen("\"name\":\"other\"", "\"name\":\"home\"", 1);
    assert_ne!(renamed, text);
    let gone = match other {
        true => Commit::new().delete("fs/other").put("fs/home", renamed.into_bytes()),
        false => Commit::new().delete("fs/home"),
    };
    world.store().commit(gone).await.unwrap();
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_filesystem_is_gone_fails() {
    let world = World::new();
    let job = outlived(&world, false).await;
    let node = world.start().await;
    let ended = node.ended(&job).await;
    assert_eq!((&ended["state"], &ended["problem"]["code"]), (&json!("failed"), &json!("unknown")));
    assert_eq!(ended["problem"]["detail"], "there is no filesystem home", "{ended}");
    node.stop().await;
}

/// An import that somebody stopped when it had begun.
async fn stopped(world: &World, node: &Running) -> Value {
    let (job, begun) = held(world, node, 1000).await;
    node.post(&format!("/v1/jobs/{}/stop", job["id"].as_str().unwrap()), &Value::Null).await;
    drop(begun);
    let ended = node.ended(&job).await;
    assert_eq!(ended["state"], "stopped", "{ended}");
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_job_fails_when_its_filesystem_is_deleted() {
    for forget in ["", "?forget=true"] {
        let world = World::new();
        let node = world.start().await;
        let job = stopped(&world, &node).await;
        let home = format!("/v1/filesystems/home{forget}");
        node.ok("DELETE", &home, &Value::Null).await;
        let ended = node.get(&format!("/v1/jobs/{}", job["id"].as_str().unwrap())).await;
        let how = (&ended["state"], &ended["problem"]["code"]);
        assert_eq!(how, (&json!("failed"), &json!("unknown")));
        assert!(ended["ended_at"].is_u64(), "{ended}");
        node.stop().await;
    }
}

/// As it was left by a node that died when the filesystem was deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_job_whose_filesystem_is_gone_or_another_fails_at_the_next_start() {
    for other in [true, false] {
        let world = World::new();
        let node = world.start().await;
        let job = stopped(&world, &node).await;
        node.stop().await;
        let fs = world.store().get("fs/home").await.unwrap().unwrap();
        let mut made_later: Value = serde_json::from_slice(&fs.value).unwrap();
        made_later["created"] = json!(made_later["created"].as_u64().unwrap() + 1);
        let gone = match other {
            true => Commit::new().put("fs/home", made_later.to_string().into_bytes()),
            false => Commit::new().delete("fs/home"),
        };
        world.store().commit(gone).await.unwrap();
        let node = world.start().await;
        let shown = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
        let ended = node.until(&shown, |job| job["state"] == "failed").await;
        assert_eq!(ended["problem"]["code"], "unknown", "{ended}");
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_does_nothing_to_another_filesystem_of_the_name() {
    let world = World::new();
    let job = outlived(&world, true).await;
    let node = world.start().await;
    let ended = node.ended(&job).await;
    assert_eq!((&ended["state"], &ended["problem"]["code"]), (&json!("failed"), &json!("unknown")));
    let why = ended["problem"]["detail"].as_str().unwrap();
    assert!(why.contains("is gone"), "{ended}");
    let listing = node.get("/v1/filesystems/home/ls").await;
    assert_eq!(listing["entries"], json!([]), "{listing}");
    // The same command is another job by now.
    let again = json!({"source": world.path("source")});
    let anew = node.post("/v1/filesystems/home/import", &again).await;
    assert_ne!(anew["id"], job["id"]);
    assert_eq!(node.ended(&anew).await["state"], "done");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_job_is_woken_by_its_end() {
    let world = World::new();
    let node = world.start().await;
    let (job, held) = held(&world, &node, 96 << 20).await;
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let begun = Instant::now();
    let running = node.get(&format!("{path}?wait_ms=20")).await;
    assert_eq!(running["state"], "running", "no longer than asked: {running}");
    assert!(begun.elapsed() >= Duration::from_millis(20), "and no shorter");
    // More than the server grants; nothing but the end answers it sooner.
    let waiting = format!("{path}?wait_ms=60000");
    let (ended, ()) = tokio::join!(node.get(&waiting), soon(held));
    assert_eq!(ended["state"], "done", "{ended}");
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    let again = Instant::now();
    assert_eq!(node.get(&format!("{path}?wait_ms=60000")).await, ended);
    assert!(again.elapsed() < Duration::from_secs(5), "it has ended already");
    let unknown = path.replace(|c: char| c.is_ascii_digit(), "0");
    node.refused(404, "GET", &format!("{unknown}?wait_ms=60000"), &Value::Null).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_waiting_job_is_woken_too() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let (job, begun) = held(&world, &node, 192 << 20).await;
    tokio::join!(node.stop(), soon(begun));
    world.kms().set_down(Some(KmsErrorKind::Sealed));
    let node = world.start().await;
    let path = format!("/v1/jobs/{}?wait_ms=10000", job["id"].as_str().unwrap());
    let begun = Instant::now();
    let waiting = async { node.get(&path).await };
    let back = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.kms().set_down(None);
    };
    let (ended, ()) = tokio::join!(waiting, back);
    assert_eq!(ended["state"], "done", "{ended}");
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_ends_answers_who_waits() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let (_, begun) = held(&world, &node, 192 << 20).await;
    tokio::join!(node.stop(), soon(begun));
    world.kms().set_down(Some(KmsErrorKind::Sealed));
    let node = world.start().await;
    let job = node.get("/v1/jobs").await["jobs"][0]["id"].as_str().unwrap().to_owned();
    let mut stream = UnixStream::connect(world.path("state/coffer.sock")).await.unwrap();
    let request = format!("GET /v1/jobs/{job}?wait_ms=10000 HTTP/1.1\r\nhost: coffer\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    node.stop().await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("\"state\":\"waiting\""), "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_lock_stops_the_job() {
    let world = World::new();
    let node = world.start().await;
    let (job, begun) = held(&world, &node, 192 << 20).await;
    let force = json!({"force": true});
    let locking = node.post("/v1/filesystems/home/lock", &force);
    let (locked, ()) = tokio::join!(locking, soon(begun));
    assert_eq!(locked["state"], "locked");
    assert_eq!(node.ended(&job).await["state"], "stopped");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_done_is_named_also_after_a_restart() {
    let world = World::new();
    let node = world.start().await;
    let job = started(&world, &node, 1 << 20).await;
    node.ended(&job).await;
    let backing = world.path("state/filesystems/home/root");
    let largest = fs::read_dir(&backing)
        .unwrap()
        .map(|entry| entry.unwrap())
        .max_by_key(|entry| entry.metadata().unwrap().len())
        .unwrap();
    let mut bytes = fs::read(largest.path()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(largest.path(), bytes).unwrap();
    let job = node.post("/v1/filesystems/home/verify", &json!({})).await;
    let ended = node.ended(&job).await;
    assert_eq!(
        (&ended["state"], &ended["problem"]["exit"]),
        (&json!("partly"), &json!("not-authentic"))
    );
    assert_eq!(ended["damage"][0]["path"], "large", "{ended}");
    let ciphertext = ended["damage"][0]["ciphertext"].as_str().unwrap();
    assert!(ciphertext.ends_with(largest.file_name().to_str().unwrap()), "{ended}");
    node.stop().await;
    let node = world.start().await;
    node.until("/v1/filesystems/home", |fs| fs["state"] == "unlocked").await;
    assert_eq!(node.ended(&job).await, ended);

    node.post("/v1/filesystems/home/lock", &json!({})).await;
    let sealed = node.ended(&job).await;
    assert_eq!((&sealed["damage"], &sealed["names_sealed"]), (&Value::Null, &json!(true)));
    assert_eq!(sealed["progress"]["failed_items"], 1, "{sealed}");
    // Another filesystem of that name can't tell them.
    node.ok("DELETE", "/v1/filesystems/home", &Value::Null).await;
    assert_eq!(node.ended(&job).await, sealed);
    node.post("/v1/filesystems", &json!({"name": "home", "allow_no_kms": true})).await;
    assert_eq!(node.ended(&job).await, sealed);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn why_a_job_failed_is_told_while_its_filesystem_is_unlocked() {
    let world = World::new();
    let node = world.start().await;
    let job = started(&world, &node, 10).await;
    node.ended(&job).await;
    let target = json!({"target": world.path("source")});
    let job = node.post("/v1/filesystems/home/export", &target).await;
    let failed = node.ended(&job).await;
    assert_eq!(failed["state"], "failed");
    assert!(failed["problem"]["detail"].as_str().unwrap().contains("not empty"), "{failed}");
    node.post("/v1/filesystems/home/lock", &json!({})).await;
    let sealed = node.ended(&job).await;
    assert_eq!(sealed["names_sealed"], true, "{sealed}");
    assert!(!sealed.to_string().contains("not empty"), "{sealed}");
    assert_eq!(sealed["problem"]["code"], failed["problem"]["code"]);
    node.post("/v1/filesystems/home/unlock", &json!({})).await;
    assert_eq!(node.ended(&job).await, failed);
    node.stop().await;
}

/// One record holds 64 KiB, and so many names do not fit.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_many_problems_is_stopped_and_goes_on() {
    let world = World::new();
    let node = world.start().await;
    fs::create_dir(world.path("source")).unwrap();
    for n in 0..900 {
        let _socket =
            UnixListener::bind(world.path(&format!("source/0-canary-socket-{n:030}"))).unwrap();
    }
    let (job, begun) = held(&world, &node, 256 << 20).await;
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    drop(begun);
    let report = world.path(&format!("state/jobs/{}.report", job["id"].as_str().unwrap()));
    let begun = Instant::now();
    while fs::read_to_string(&report).unwrap_or_default().lines().count() < 900 {
        assert!(begun.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    node.post(&format!("{path}/stop"), &Value::Null).await;
    assert_eq!(node.ended(&job).await["state"], "stopped");
    for entry in fs::read_dir(world.path("state/jobs")).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.is_empty());
        assert!(!String::from_utf8_lossy(&bytes).contains("canary"));
    }
    let again = json!({"source": world.path("source")});
    let resumed = node.post("/v1/filesystems/home/import", &again).await;
    assert_eq!((&resumed["id"], &resumed["resumed"]), (&job["id"], &json!(true)));
    let ended = node.ended(&resumed).await;
    assert_eq!(ended["state"], "done", "{ended}");
    assert_eq!(ended["damage"].as_array().unwrap().len(), 900);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_skipped_is_named_and_what_clashes_makes_it_partly_done() {
    let world = World::new();
    let node = world.start().await;
    fs::create_dir(world.path("source")).unwrap();
    let _socket = UnixListener::bind(world.path("source/socket")).unwrap();
    fs::create_dir(world.path("source/clash")).unwrap();
    let ended = node.ended(&started(&world, &node, 10).await).await;
    assert_eq!((&ended["state"], &ended["problem"]), (&json!("done"), &Value::Null), "{ended}");
    assert_eq!(ended["damage"][0]["kind"], "skipped", "{ended}");

    fs::remove_dir(world.path("source/clash")).unwrap();
    fs::write(world.path("source/clash"), "a file now").unwrap();
    let again = json!({"source": world.path("source")});
    let job = node.post("/v1/filesystems/home/import", &again).await;
    let ended = node.ended(&job).await;
    assert_eq!(
        (&ended["state"], &ended["problem"]["exit"], &ended["progress"]["failed_items"]),
        (&json!("partly"), &json!("partly"), &json!(1)),
        "{ended}"
    );
    assert_eq!(ended["damage"].as_array().unwrap().len(), 2, "{ended}");
    node.stop().await;
}

/// Why this job waits that can't be recorded, as it is shown, listed and warned of.
async fn why_it_waits(node: &Running, job: &Value) -> String {
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    // At first the next node waits for the key.
    let waits = |job: &Value| job["state"] == "waiting" && job["problem"]["code"] == "store-failed";
    let shown = node.until(&path, waits).await;
    let why = shown["problem"]["detail"].as_str().unwrap().to_owned();
    let cure = shown["problem"]["cure"].as_str().unwrap();
    assert!(
        cure.contains("the disk of the state directory") && cure.contains("by itself"),
        "{cure}"
    );
    let listed = node.get("/v1/jobs").await;
    assert_eq!(listed["jobs"][0]["problem"], shown["problem"]);
    let status = node.get("/v1/status").await;
    let mut findings = status["findings"].as_array().unwrap().iter();
    let warned = findings.find(|found| found["code"] == "job-waits").unwrap();
    assert!(warned["what"].as_str().unwrap().contains(&why), "{warned}");
    why
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_end_can_not_be_recorded_says_so_and_ends_when_there_is_room() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let (import, begun) = held(&world, &node, 1000).await;
    world.store().set_full(true);
    drop(begun);
    assert!(why_it_waits(&node, &import).await.contains("its disk is full"));
    let again = json!({"source": world.path("source")});
    let again = node.post("/v1/filesystems/home/import", &again).await;
    assert_eq!((&again["id"], &again["state"]), (&import["id"], &json!("waiting")));
    let lock = "/v1/filesystems/home/lock";
    let busy = node.refused(409, "POST", lock, &json!({"force": true})).await;
    assert_eq!(busy["code"], "busy", "{busy}");
    let why = busy["detail"].as_str().unwrap();
    assert!(why.contains("can't be recorded") && why.contains("its disk is full"), "{why}");
    assert!(busy["cure"].as_str().unwrap().contains("the disk of the state directory"), "{busy}");
    world.store().set_full(false);
    assert_eq!(node.ended(&import).await["state"], "done");

    let mut begun = world.store().hold_after("job/", "fs/home");
    let rekey = node.post("/v1/filesystems/home/rekey", &Value::Null).await;
    begun.reached().await;
    world.store().set_full(true);
    drop(begun);
    assert!(why_it_waits(&node, &rekey).await.contains("its disk is full"));
    let previous = world.path("state/filesystems/home/coffer.previous-key");
    assert!(previous.exists(), "what is recorded is there");
    // Nor does the next node lose it.
    node.stop().await;
    let node = world.start().await;
    assert!(why_it_waits(&node, &rekey).await.contains("its disk is full"));
    world.store().set_full(false);
    let ended = node.ended(&rekey).await;
    assert_eq!((&ended["state"], &ended["problem"]), (&json!("done"), &Value::Null), "{ended}");
    let home = node.get("/v1/filesystems/home").await;
    assert!(home["previous_key_id"].is_null() && !previous.exists(), "{home}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_re_encryption_that_only_has_to_be_recorded_can_be_stopped() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    let mut begun = world.store().hold_after("job/", "fs/home");
    let rekey = node.post("/v1/filesystems/home/rekey", &Value::Null).await;
    begun.reached().await;
    world.store().set_full(true);
    drop(begun);
    why_it_waits(&node, &rekey).await;
    let path = format!("/v1/jobs/{}/stop", rekey["id"].as_str().unwrap());
    assert_eq!(node.post(&path, &Value::Null).await["state"], "stopping");
    // A try that had begun already would let the old key go.
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.store().set_full(false);
    assert_eq!(node.ended(&rekey).await["state"], "stopped");
    let rekey = node.post("/v1/filesystems/home/rekey", &Value::Null).await;
    assert_eq!(node.ended(&rekey).await["state"], "done");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewrap_that_can_not_be_recorded_says_so_too() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    world.kms().rotate();
    let mut first_key = world.kms().hold("rewrap");
    let rewrap = node.post("/v1/kms/rewrap", &Value::Null).await;
    first_key.reached().await;
    world.store().set_full(true);
    drop(first_key);
    assert!(why_it_waits(&node, &rewrap).await.contains("its disk is full"));
    world.store().set_full(false);
    let again = node.post("/v1/kms/rewrap", &Value::Null).await;
    assert_eq!(again["id"], rewrap["id"]);
    let ended = node.ended(&rewrap).await;
    assert_eq!((&ended["state"], &ended["problem"]), (&json!("done"), &Value::Null), "{ended}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_listed_by_page_the_newest_first() {
    let world = World::new();
    let node = world.start().await;
    node.post("/v1/filesystems", &json!({"name": "home", "allow_no_kms": true})).await;
    for _ in 0..5 {
        let job = node.post("/v1/filesystems/home/verify", &json!({})).await;
        node.ended(&job).await;
    }
    let ids = |page: &Value| -> Vec<String> {
        page["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| job["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let whole = node.get("/v1/jobs").await;
    assert_eq!(whole["next"], Value::Null, "{whole}");
    let all = ids(&whole);
    assert_eq!(all.len(), 5);
    let mut paged = Vec::new();
    let mut path = "/v1/jobs?limit=2".to_owned();
    for expected in [2, 2, 1] {
        let page = node.get(&path).await;
        assert_eq!(page["jobs"].as_array().unwrap().len(), expected, "{page}");
        paged.extend(ids(&page));
        let next = page["next"].as_str();
        assert_eq!(next.is_none(), expected == 1, "{page}");
        path = format!("/v1/jobs?limit=2&after={}", next.unwrap_or_default());
    }
    assert_eq!(paged, all);

    // A page goes on where it was, also if a job came or went.
    let first = node.get("/v1/jobs?limit=2").await;
    let (next, last) = (first["next"].as_str().unwrap(), &ids(&first)[1]);
    let forget = Commit::new().delete(format!("job/{last}"));
    world.store().commit(forget).await.unwrap();
    let job = node.post("/v1/filesystems/home/verify", &json!({})).await;
    node.ended(&job).await;
    assert_eq!(ids(&node.get(&format!("/v1/jobs?after={next}")).await), all[2..]);
    for bad in ["after=x", "after=-", "after=1x-y", "limit=x"] {
        node.refused(400, "GET", &format!("/v1/jobs?{bad}"), &Value::Null).await;
    }
    node.stop().await;
}
