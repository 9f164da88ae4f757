//! A new key for a filesystem beside what uses it.

use serde_json::{Value, json};
use testkit::tree;

use crate::world::{Running, World, beside_a_listing, held, set_vault};

const REKEY: &str = "/v1/filesystems/home/rekey";

async fn home(node: &Running) -> Value {
    node.get("/v1/filesystems/home").await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_not_begin_while_a_copy_runs() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let (import, begun) = held(&world, &node, 1000).await;
    let refused = node.refused(409, "POST", REKEY, &Value::Null).await;
    assert_eq!(refused["code"], "busy", "{refused}");
    assert!(refused["detail"].as_str().unwrap().contains(import["id"].as_str().unwrap()));
    assert_eq!(home(&node).await["previous_key_id"], Value::Null);
    drop(begun);
    assert_eq!(node.ended(&import).await["state"], "done");
    let before = home(&node).await;
    let rekeyed = node.ended(&node.post(REKEY, &Value::Null).await).await;
    assert_eq!((&rekeyed["kind"], &rekeyed["state"]), (&json!("rekey"), &json!("done")));
    let after = home(&node).await;
    assert!(after["key_id"] != before["key_id"] && after["previous_key_id"].is_null(), "{after}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_has_the_old_key_gets_what_is_open_with_both() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    let (listed, job) = beside_a_listing(&world, &node, async |held| {
        let job = node.post(REKEY, &Value::Null).await;
        node.until("/v1/jobs", |jobs| jobs["jobs"][0]["state"] != "running").await;
        drop(held);
        job
    })
    .await;
    assert_eq!(listed.status, 200, "{listed:?}");
    assert_eq!(node.ended(&job).await["state"], "done");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_goes_on_at_the_next_start_and_its_copies_are_brought_along() {
    let world = World::new();
    let node = world.start().await;
    node.post("/v1/filesystems", &json!({"name": "home", "allow_no_kms": true})).await;
    let source = world.path("source");
    tree::small_files(&source, 10).unwrap();
    let import = node.post("/v1/filesystems/home/import", &json!({"source": source})).await;
    node.ended(&import).await;
    let refused = node.refused(409, "POST", REKEY, &Value::Null).await;
    assert_eq!(refused["code"], "no-kms", "{refused}");
    node.ok("PUT", "/v1/kms", &set_vault()).await;
    node.until("/v1/jobs", |jobs| jobs["jobs"][0]["state"] == "done").await;

    // The node ends when the job has hardly begun.
    let mut opening = world.store().hold_after("job/", "fs/home");
    let job = node.post(REKEY, &Value::Null).await;
    opening.reached().await;
    tokio::join!(node.stop(), async { drop(opening) });
    let node = world.start().await;
    let done = node.ended(&job).await;
    assert_eq!(done["state"], "done", "{done}");
    let shown = home(&node).await;
    assert!(shown["exposed"] == false && shown["previous_key_id"].is_null(), "{shown}");
    let target = world.path("target");
    let export = node.post("/v1/filesystems/home/export", &json!({"target": target})).await;
    assert_eq!(node.ended(&export).await["state"], "done");
    assert_eq!(tree::differences(&source, &target).unwrap(), Vec::<String>::new());
    node.stop().await;
}

/// Turns a bit of the one large file, or turns it back.
fn spoil(backing: &std::path::Path) {
    let mut files = std::fs::read_dir(backing.join("root")).unwrap().map(|it| it.unwrap().path());
    let damaged = files.find(|path| path.metadata().unwrap().len() > 4096).unwrap();
    let mut bytes = std::fs::read(&damaged).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
}

/// Makes a filesystem with a damaged file, and begins to give it a new key; the job, which can't do it all.
async fn partly_rekeyed(world: &World, node: &Running) -> Value {
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    let source = world.path("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("plan"), tree::noise(1, 10_000)).unwrap();
    let import = node.post("/v1/filesystems/home/import", &json!({"source": source})).await;
    node.ended(&import).await;
    spoil(&world.path("state/filesystems/home"));
    node.ended(&node.post(REKEY, &Value::Null).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_with_two_keys_is_told_of_and_can_be_deleted() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let partly = partly_rekeyed(&world, &node).await;
    assert_eq!(
        (&partly["state"], &partly["problem"]["exit"]),
        (&json!("partly"), &json!("partly"))
    );
    assert!(partly["problem"]["cure"].as_str().unwrap().contains("coffer fs rekey home"));
    let shown = home(&node).await;
    assert!(shown["previous_key_id"].is_string() && shown["state"] == "unlocked", "{shown}");
    let found = node.get("/v1/status").await["findings"].clone();
    let told = |code: &str| found.as_array().unwrap().iter().any(|it| it["code"] == code);
    assert!(told("rekey-unfinished"), "{found}");
    node.get("/v1/filesystems/home/ls").await;
    let deleted = node.ok("DELETE", "/v1/filesystems/home", &Value::Null).await;
    assert_eq!(deleted["removed"].as_array().unwrap().len(), 2, "{deleted}");
    assert!(!world.path("state/filesystems/home").exists());
    node.stop().await;
}

/// It can't begin, and all stays readable; with room it can.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_it_and_leaves_the_filesystem_as_it_is() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let backing = world.path("backing");
    std::fs::create_dir(&backing).unwrap();
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=1m", "coffer-test"]).arg(&backing);
    assert!(mount.status().unwrap().success());
    node.post("/v1/filesystems", &json!({"name": "home", "backing": backing})).await;
    let filler = backing.join("lost+found");
    assert!(std::fs::write(&filler, vec![0; 2 << 20]).is_err(), "the disk is full");
    let answer = node.ask("POST", REKEY, "null").await;
    assert!(answer.status >= 400 && answer.body.to_string().contains("No space"), "{answer:?}");
    assert_eq!(home(&node).await["previous_key_id"], Value::Null);
    node.get("/v1/filesystems/home/ls").await;
    std::fs::remove_file(&filler).unwrap();
    let done = node.ended(&node.post(REKEY, &Value::Null).await).await;
    assert_eq!(done["state"], "done", "{done}");
    node.stop().await;
    assert!(std::process::Command::new("umount").arg(&backing).status().unwrap().success());
}

/// Both keys lie under local wrapping meanwhile: it waits for a KMS, and does not end as if all were well.
#[tokio::test(flavor = "multi_thread")]
async fn one_whose_new_key_is_exposed_meanwhile_says_so() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let partly = partly_rekeyed(&world, &node).await;
    assert_eq!(partly["state"], "partly");
    let over =
        |jobs: &Value| jobs["jobs"].as_array().unwrap().iter().all(|job| job["state"] != "running");
    node.ok("DELETE", "/v1/kms?allow_downgrade=true", &Value::Null).await;
    node.until("/v1/jobs", over).await;
    let refused = node.refused(409, "POST", REKEY, &Value::Null).await;
    assert_eq!(refused["code"], "no-kms", "{refused}");
    node.ok("PUT", "/v1/kms", &set_vault()).await;
    node.until("/v1/jobs", over).await;
    spoil(&world.path("state/filesystems/home"));
    let exposed = node.ended(&node.post(REKEY, &Value::Null).await).await;
    let problem = &exposed["problem"];
    assert_eq!((&exposed["state"], &problem["exit"]), (&json!("partly"), &json!("partly")));
    let cure = problem["cure"].as_str().unwrap();
    assert!(cure.contains("coffer fs rekey home once more"), "{cure}");
    let shown = home(&node).await;
    assert!(shown["previous_key_id"].is_null() && shown["exposed"] == true, "{shown}");
    let again = node.ended(&node.post(REKEY, &Value::Null).await).await;
    assert_eq!((&again["state"], &home(&node).await["exposed"]), (&json!("done"), &json!(false)));
    node.stop().await;
}
