//! A filesystem's life over the API.

use std::fs;
use std::time::Duration;

use key_manager::{FilesystemName, LockReason, Rehearsal};
use serde_json::{Value, json};
use testkit::tree;

use crate::world::{JSON, Running, World, beside_a_listing};

#[tokio::test(flavor = "multi_thread")]
async fn made_filled_listed_emptied_and_deleted() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let (source, target) = (world.path("source"), world.path("target"));
    tree::small_files(&source, 20).unwrap();
    let made = node.post("/v1/filesystems", &json!({"name": "home"})).await;
    assert_eq!((&made["state"], &made["exposed"]), (&json!("unlocked"), &json!(false)), "{made}");
    assert_eq!(made["wrapped_by"], json!({"kind": "vault", "master_key": "k", "version": 1}));
    assert!(world.path("state/filesystems/home/coffer.key").is_file());

    let import = json!({"source": source});
    let job = node.post("/v1/filesystems/home/import", &import).await;
    let job = node.ended(&job).await;
    assert_eq!((&job["state"], &job["resumed"]), (&json!("done"), &json!(false)), "{job}");
    let listed = node.get("/v1/filesystems/home/ls?path=directory-0000&limit=3").await;
    assert_eq!(listed["entries"].as_array().unwrap().len(), 3, "{listed}");
    let after = listed["next"].as_str().unwrap();
    let rest =
        node.get(&format!("/v1/filesystems/home/ls?path=directory-0000&after={after}")).await;
    assert_eq!(rest["entries"].as_array().unwrap().len(), 17, "{rest}");

    for path in ["nope", "directory-0000/nope", "directory-0000/file-000001.txt/nope"] {
        let ls = format!("/v1/filesystems/home/ls?path={path}");
        let unknown = node.refused(404, "GET", &ls, &Value::Null).await;
        assert_eq!((&unknown["code"], &unknown["exit"]), (&json!("unknown"), &json!("state")));
    }
    let above = node.refused(400, "GET", "/v1/filesystems/home/ls?path=a/..", &Value::Null).await;
    assert_eq!(above["exit"], "usage", "{above}");

    let job = node.post("/v1/filesystems/home/verify", &json!({})).await;
    assert_eq!(node.ended(&job).await["state"], "done");
    let job = node.post("/v1/filesystems/home/export", &json!({"target": target})).await;
    assert_eq!(node.ended(&job).await["state"], "done");
    let file = "directory-0000/file-000001.txt";
    assert_eq!(fs::read(source.join(file)).unwrap(), fs::read(target.join(file)).unwrap());

    node.refused(409, "DELETE", "/v1/kms?allow_downgrade=false", &Value::Null).await;
    let deleted = node.ok("DELETE", "/v1/filesystems/home", &Value::Null).await;
    assert_eq!(deleted["remaining"], json!([]), "{deleted}");
    assert!(!world.path("state/filesystems/home").exists());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_out_of_reach_is_named_and_not_deleted_unasked() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let (backing, elsewhere) = (world.path("backing"), world.path("elsewhere"));
    node.post("/v1/filesystems", &json!({"name": "home", "backing": backing})).await;
    node.until("/v1/kms", |kms| kms["configured"]["lowest_needed"] == 1).await;
    fs::rename(&backing, &elsewhere).unwrap();
    // The place where it was mounted is there.
    fs::create_dir(&backing).unwrap();
    world.kms().rotate();
    let job = node.post("/v1/kms/rewrap", &Value::Null).await;
    assert_eq!(node.ended(&job).await["state"], "partly");
    let kms = node.get("/v1/kms").await;
    assert_eq!(kms["configured"]["lowest_needed"], Value::Null, "{kms}");
    let found =
        kms["findings"].as_array().unwrap().iter().find(|f| f["code"] == "copy-out-of-reach");
    let what = found.unwrap()["what"].as_str().unwrap();
    assert!(what.starts_with("home ") && what.contains(backing.to_str().unwrap()), "{what}");
    let refused = node.refused(409, "DELETE", "/v1/filesystems/home", &Value::Null).await;
    assert_eq!(refused["code"], "backing-away", "{refused}");
    assert_eq!(fs::read_dir(&backing).unwrap().count(), 0, "nothing is written there");

    // Back again, its copy is brought up to date without being asked; and then it can be deleted.
    fs::remove_dir(&backing).unwrap();
    fs::rename(&elsewhere, &backing).unwrap();
    node.post("/v1/filesystems/home/unlock", &json!({})).await;
    node.until("/v1/kms", |kms| kms["configured"]["lowest_needed"] == 2).await;
    assert!(fs::read_to_string(backing.join("coffer.key")).unwrap().contains("\"version\": 2"));

    fs::rename(&backing, &elsewhere).unwrap();
    let path = "/v1/filesystems/home?forget=true";
    let deleted = node.ok("DELETE", path, &Value::Null).await;
    assert_eq!(
        (&deleted["removed"], deleted["remaining"].as_array().unwrap().len()),
        (&json!([]), 1)
    );
    assert!(elsewhere.join("root").exists(), "what lies there stays");
    assert_eq!(node.get("/v1/status").await["filesystems"]["total"], 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filesystem_with_a_damaged_header_can_be_deleted_once_that_is_mended() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    node.until("/v1/kms", |kms| kms["configured"]["lowest_needed"] == 1).await;
    let header = world.path("state/filesystems/home/coffer.key");
    let sound = fs::read(&header).unwrap();
    fs::write(&header, "rubbish").unwrap();
    let refused = node.refused(409, "DELETE", "/v1/filesystems/home", &Value::Null).await;
    assert_eq!(refused["code"], "backing-away", "{refused}");
    node.until("/v1/status", |_| fs::read(&header).unwrap() == sound).await;
    node.ok("DELETE", "/v1/filesystems/home", &Value::Null).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backing_directory_that_is_not_as_it_should_be_is_warned_of() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let place = |name| world.path("state/filesystems").join(name);
    let names = ["away", "bare", "emptied", "of-another", "sound"];
    for name in names {
        node.post("/v1/filesystems", &json!({"name": name})).await;
    }
    node.stop().await;
    fs::rename(place("away"), world.path("elsewhere")).unwrap();
    fs::remove_dir_all(place("bare").join("root")).unwrap();
    fs::remove_dir_all(place("emptied")).unwrap();
    fs::create_dir(place("emptied")).unwrap();
    fs::copy(place("sound").join("coffer.key"), place("of-another").join("coffer.key")).unwrap();

    let node = world.start().await;
    let warned = |status: &Value| -> Vec<String> {
        let all = status["kms"]["findings"].as_array().unwrap().iter();
        let out_of_reach = all.filter(|f| f["code"] == "copy-out-of-reach");
        let names = out_of_reach.map(|f| f["what"].as_str().unwrap().split(' ').next().unwrap());
        names.map(str::to_owned).collect()
    };
    node.until("/v1/status", |status| warned(status) == names[..4]).await;
    let listed = node.get("/v1/filesystems").await;
    for filesystem in listed["filesystems"].as_array().unwrap() {
        let sound = filesystem["name"] == "sound";
        assert_eq!(filesystem["findings"].is_null(), sound, "{filesystem}");
    }
    assert_eq!(fs::read_dir(place("emptied")).unwrap().count(), 0, "nothing is written there");
    fs::rename(world.path("elsewhere"), place("away")).unwrap();
    node.post("/v1/filesystems/away/unlock", &json!({})).await;
    node.until("/v1/status", |status| warned(status) == names[1..4]).await;
    node.stop().await;
}

/// Two minutes later, as far as pauses are concerned.
async fn later() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(121)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_backing_directory_that_goes_away_later_is_noticed() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    node.until("/v1/kms", |kms| kms["configured"]["lowest_needed"] == 1).await;
    fs::rename(world.path("state/filesystems/home"), world.path("elsewhere")).unwrap();
    later().await;
    node.until("/v1/filesystems/home", |home| !home["findings"].is_null()).await;
    fs::rename(world.path("elsewhere"), world.path("state/filesystems/home")).unwrap();
    later().await;
    node.until("/v1/filesystems/home", |home| home["findings"].is_null()).await;

    // A copy of the wrapped key that is gone is put back by the same look.
    let header = world.path("state/filesystems/home/coffer.key");
    let sound = fs::read(&header).unwrap();
    fs::remove_file(&header).unwrap();
    later().await;
    node.until("/v1/status", |_| fs::read(&header).is_ok_and(|found| found == sound)).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_another_key_is_not_deleted_and_not_said_to_be() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let headers =
        ["a", "b"].map(|name| world.path("state/filesystems").join(name).join("coffer.key"));
    for name in ["a", "b"] {
        node.post("/v1/filesystems", &json!({"name": name})).await;
    }
    let [a, b] = headers.each_ref().map(|header| fs::read(header).unwrap());
    fs::write(&headers[0], b).unwrap();
    fs::write(&headers[1], a).unwrap();
    let refused = node.refused(409, "DELETE", "/v1/filesystems/a", &Value::Null).await;
    assert_eq!((&refused["code"], &refused["exit"]), (&json!("backing-away"), &json!("state")));
    let forgotten = node.ok("DELETE", "/v1/filesystems/b?forget=true", &Value::Null).await;
    assert_eq!(forgotten["removed"], json!([]), "{forgotten}");
    let left = forgotten["remaining"][0].as_str().unwrap();
    assert!(left.contains("filesystems/b") && left.contains("as it is"), "{left}");
    assert!(headers.iter().all(|header| header.with_file_name("root").exists()));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_half_deleted_is_shown_and_can_be_deleted_again_or_forgotten() {
    let world = World::new();
    let node = world.start_with_kms().await;
    for name in ["home", "work"] {
        node.post("/v1/filesystems", &json!({"name": name})).await;
        // No directory, so nothing that could be emptied.
        let links = world.path("state/filesystems").join(name).join("coffer.links");
        fs::remove_dir(&links).unwrap();
        fs::write(&links, "").unwrap();
        let path = format!("/v1/filesystems/{name}");
        node.refused(500, "DELETE", &path, &Value::Null).await;
        let shown = node.get(&path).await;
        assert_eq!(shown["state"], "deleting", "{shown}");
        let cure = shown["problem"]["cure"].as_str().unwrap();
        assert!(cure.contains(&format!("coffer fs delete {name}")), "{cure}");
        let refused = node.refused(409, "GET", &format!("{path}/ls"), &Value::Null).await;
        assert_eq!(refused["code"], "deleting", "{refused}");
    }
    node.stop().await;

    let node = world.start().await;
    let status = node.get("/v1/status").await;
    assert_eq!(
        status["filesystems"],
        json!({"total": 2, "unlocked": 0, "locked": 0, "unlocking": 0, "deleting": 2, "exposed": 0})
    );
    assert_eq!(node.get("/v1/filesystems").await["filesystems"].as_array().unwrap().len(), 2);
    let found: Vec<_> = status["findings"].as_array().unwrap().iter().map(|f| &f["code"]).collect();
    assert_eq!(found.iter().filter(|code| **code == "half-deleted").count(), 2, "{status}");
    let job = node.post("/v1/kms/rewrap", &Value::Null).await;
    let job = node.ended(&job).await;
    assert_eq!((&job["state"], &job["progress"]["items"]), (&json!("done"), &json!(0)), "{job}");

    fs::remove_file(world.path("state/filesystems/home/coffer.links")).unwrap();
    // The node may have gone on with it already.
    let again = node.ask("DELETE", "/v1/filesystems/home", "").await;
    assert!([200, 404].contains(&again.status), "{again:?}");
    assert!(!world.path("state/filesystems/home").exists());
    let forgotten = node.ok("DELETE", "/v1/filesystems/work?forget=true", &Value::Null).await;
    let left = forgotten["remaining"][0].as_str().unwrap();
    assert!(left.contains("filesystems/work") && left.contains("as it is"), "{forgotten}");
    assert!(world.path("state/filesystems/work").exists());
    assert_eq!(node.get("/v1/status").await["filesystems"]["total"], 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_not_undone_by_what_was_being_opened() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    // The listing has the key and goes on to open the directory.
    let (listed, ()) = beside_a_listing(&world, &node, async |place| {
        node.post("/v1/filesystems/home/lock", &json!({})).await;
        drop(place);
    })
    .await;
    assert_eq!(listed.status, 200, "{listed:?}");
    let lock = fs::File::open(world.path("state/filesystems/home/coffer.lock")).unwrap();
    lock.try_lock().unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unlocked_is_held_before_it_is_used() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let made = node.post("/v1/filesystems", &json!({"name": "home"})).await;
    assert_eq!(made["state"], "unlocked");
    let lock = fs::File::open(world.path("state/filesystems/home/coffer.lock")).unwrap();
    assert!(lock.try_lock().is_err(), "from its creation on");
    node.stop().await;
    lock.try_lock().unwrap();

    // Somebody else has it now.
    let node = world.start().await;
    let in_use = |status: &Value| {
        let findings = status["findings"].as_array().unwrap();
        findings.iter().any(|finding| finding["code"] == "filesystem-in-use")
    };
    let found = node.until("/v1/status", in_use).await;
    assert!(found.to_string().contains("another process or node has it open"), "{found}");
    let refused = node.refused(409, "GET", "/v1/filesystems/home/ls", &Value::Null).await;
    assert_eq!(refused["code"], "filesystem-in-use");
    lock.unlock().unwrap();
    node.post("/v1/filesystems/home/unlock", &json!({})).await;
    node.until("/v1/status", |status| !in_use(status)).await;
    assert!(lock.try_lock().is_err(), "unused as it is");

    node.post("/v1/filesystems/home/lock", &json!({})).await;
    lock.try_lock().unwrap();
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_take_itself_for_another() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    // A listing that goes on while its filesystem is locked and unlocked again.
    let (listed, ()) = beside_a_listing(&world, &node, async |place| {
        node.post("/v1/filesystems/home/lock", &json!({})).await;
        node.post("/v1/filesystems/home/unlock", &json!({})).await;
        node.get("/v1/filesystems/home/ls").await;
        drop(place);
    })
    .await;
    assert_eq!(listed.status, 200, "{listed:?}");
    assert_eq!(node.get("/v1/status").await["findings"], json!([]));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backing_directory_that_is_replaced_is_noticed() {
    let world = World::new();
    let node = world.start_with_kms().await;
    for name in ["used", "idle"] {
        node.post("/v1/filesystems", &json!({"name": name})).await;
    }
    node.get("/v1/filesystems/used/ls").await;
    let replaced = |name: &str| {
        let place = world.path(&format!("state/filesystems/{name}"));
        let mut copy = std::process::Command::new("cp");
        assert!(copy.arg("-a").arg(&place).arg(world.path(name)).status().unwrap().success());
        fs::rename(&place, world.path(&format!("{name}-moved"))).unwrap();
        fs::rename(world.path(name), place).unwrap();
    };
    ["used", "idle"].into_iter().for_each(replaced);
    // Any act that can open something makes the node look.
    node.post("/v1/filesystems/idle/unlock", &json!({})).await;
    let is_told = |status: &Value| status["findings"][0]["code"] == "backing-replaced";
    let status = node.until("/v1/status", is_told).await;
    assert!(status["findings"][0]["what"].as_str().unwrap().starts_with("what is open of used"));
    assert_eq!(status["findings"].as_array().unwrap().len(), 1, "{status}");
    // Put back, it is all right again.
    let (place, moved) = (world.path("state/filesystems/used"), world.path("used-moved"));
    fs::rename(&place, world.path("used")).unwrap();
    fs::rename(&moved, &place).unwrap();
    node.post("/v1/filesystems/idle/unlock", &json!({})).await;
    node.until("/v1/status", |status| status["findings"] == json!([])).await;
    fs::rename(&place, &moved).unwrap();
    fs::rename(world.path("used"), &place).unwrap();
    let locked = |place: &str| {
        let lock = fs::File::open(world.path(place).join("coffer.lock")).unwrap();
        lock.try_lock_shared().is_err()
    };
    // What was not open is held where it lies now.
    assert!(!locked("idle-moved") && locked("state/filesystems/idle"));
    node.post("/v1/filesystems/used/lock", &json!({})).await;
    node.post("/v1/filesystems/used/unlock", &json!({})).await;
    node.until("/v1/status", |status| status["findings"] == json!([])).await;
    node.get("/v1/filesystems/used/ls").await;
    assert!(!locked("used-moved") && locked("state/filesystems/used"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_waits_for_what_is_being_listed() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    // One that has the key and opens the directory when the deletion has begun.
    let (listed, deleted) = beside_a_listing(&world, &node, async |place| {
        let deleting = node.ok("DELETE", "/v1/filesystems/home", &Value::Null);
        let let_go = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(place);
        };
        tokio::join!(deleting, let_go).0
    })
    .await;
    assert_eq!(deleted["name"], "home");
    assert!([200, 404, 409].contains(&listed.status), "{listed:?}");
    assert!(!world.path("state/filesystems/home").exists());
    assert_eq!(node.get("/v1/status").await["filesystems"]["total"], 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_state_does_not_allow_changes_nothing() {
    let world = World::new();
    let node = world.start().await;
    let create = json!({"name": "home"});
    let refused = node.refused(409, "POST", "/v1/filesystems", &create).await;
    assert_eq!((&refused["code"], &refused["exit"]), (&json!("no-kms"), &json!("state")));
    let local = json!({"name": "home", "allow_no_kms": true});
    assert_eq!(node.post("/v1/filesystems", &local).await["exposed"], true);
    assert_eq!(node.refused(409, "POST", "/v1/filesystems", &local).await["code"], "exists");
    for bad in ["", "..", "a/b", "a\nb", &"x".repeat(300)] {
        let bad = json!({"name": bad, "allow_no_kms": true});
        assert_eq!(node.refused(400, "POST", "/v1/filesystems", &bad).await["exit"], "usage");
    }
    let relative = json!({"source": "somewhere"});
    node.refused(400, "POST", "/v1/filesystems/home/import", &relative).await;
    let file = world.path("file");
    fs::write(&file, "x").unwrap();
    for (source, why) in [(file, "is no directory"), (world.path("none"), "does not exist")] {
        let source = json!({"source": source});
        let refused = node.refused(400, "POST", "/v1/filesystems/home/import", &source).await;
        assert!(refused["detail"].to_string().contains(why), "{refused}");
    }
    assert_eq!(node.get("/v1/jobs").await["jobs"], json!([]));
    // A directory that holds something else is not taken, and stays as it is.
    let other = world.path("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("precious"), "x").unwrap();
    let taken = json!({"name": "two", "allow_no_kms": true, "backing": other});
    let refused = node.refused(409, "POST", "/v1/filesystems", &taken).await;
    assert_eq!((&refused["code"], &refused["exit"]), (&json!("filesystem-unfit"), &json!("state")));
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
    let all = node.get("/v1/filesystems").await;
    assert_eq!(all["filesystems"].as_array().unwrap().len(), 1, "{all}");
    assert_eq!(node.get("/v1/status").await["filesystems"]["exposed"], 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_one_stays_locked_over_a_restart() {
    let world = World::new();
    let node = world.start_with_kms().await;
    for name in ["a", "b", "c"] {
        node.post("/v1/filesystems", &json!({"name": name})).await;
    }
    assert_eq!(node.post("/v1/filesystems/b/lock", &json!({})).await["state"], "locked");
    node.stop().await;
    let node = world.start().await;
    node.until("/v1/status", |status| status["filesystems"]["unlocked"] == 2).await;
    let locked = node.get("/v1/filesystems/b").await;
    assert_eq!(locked["problem"]["code"], "locked-by-admin", "{locked}");
    let refused = node.refused(409, "GET", "/v1/filesystems/b/ls", &Value::Null).await;
    assert_eq!(refused["exit"], "state");
    assert_eq!(node.post("/v1/filesystems/b/unlock", &Value::Null).await["state"], "unlocked");
    node.get("/v1/filesystems/b/ls").await;
    let page = node.get("/v1/filesystems?limit=2").await;
    assert_eq!(page["next"], "b", "{page}");
    let rest = node.get("/v1/filesystems?after=b").await;
    assert_eq!(rest["filesystems"].as_array().unwrap().len(), 1, "{rest}");
    assert_eq!(rest["next"], Value::Null);
    let page = node.get("/v1/filesystems?search=b&limit=1").await;
    assert_eq!((&page["filesystems"][0]["name"], &page["next"]), (&json!("b"), &Value::Null));
    node.stop().await;
}

/// A rehearsal that found these, and nothing else.
fn out_of_reach(names: [FilesystemName; 2], why: &str) -> Rehearsal {
    Rehearsal {
        open: 0,
        shut: Vec::new(),
        held: Vec::new(),
        credential_left: None,
        stopped_left: None,
        starts_left: None,
        until: None,
        out_of_reach: names.map(|name| (name, why.to_owned())).into(),
        warnings: Vec::new(),
    }
}

/// The process that rehearses has a copy of the store, in which the old key is that of the filesystem.
#[tokio::test]
async fn a_rehearsal_does_not_warn_of_a_key_that_changed_beside_it() {
    let world = World::new();
    let node = world.start_with_kms().await;
    for name in ["home", "work"] {
        node.post("/v1/filesystems", &json!({ "name": name })).await;
    }
    let why = "it is that of another filesystem's key".to_owned();
    let each = ["home", "work"].map(|name| name.parse::<FilesystemName>().unwrap());
    world.rehearsals_find(Rehearsal { open: 2, ..out_of_reach(each, &why) });
    let mut held = world.hold_rehearsal();
    let (rehearsed, ()) = tokio::join!(node.post("/v1/kms/rehearse", &Value::Null), async {
        held.reached().await;
        let job = node.post("/v1/filesystems/home/rekey", &Value::Null).await;
        assert_eq!(node.ended(&job).await["state"], "done", "nothing waits for the rehearsal");
        drop(held);
    });
    let warned = "the backing directory of work is out of reach or changed: ".to_owned() + &why;
    assert_eq!(rehearsed["warnings"], json!([warned]), "{rehearsed}");
    node.stop().await;
}

/// The process that rehearses has a copy of the store, and finds the directory gone.
#[tokio::test]
async fn a_rehearsal_does_not_tell_of_what_was_deleted_beside_it() {
    let world = World::new();
    let node = world.start_with_kms().await;
    for name in ["home", "work"] {
        node.post("/v1/filesystems", &json!({ "name": name })).await;
    }
    let why = "its backing directory is gone".to_owned();
    let reason =
        LockReason { code: "copy-missing".into(), why: why.clone(), cure: None, transient: false };
    let each = ["home", "work"].map(|name| name.parse::<FilesystemName>().unwrap());
    world.rehearsals_find(Rehearsal {
        shut: each.clone().map(|name| (name, reason.clone())).into(),
        held: each.clone().into(),
        ..out_of_reach(each, &why)
    });
    let mut held = world.hold_rehearsal();
    let (rehearsed, ()) = tokio::join!(node.post("/v1/kms/rehearse", &Value::Null), async {
        held.reached().await;
        node.ok("DELETE", "/v1/filesystems/home", &Value::Null).await;
        drop(held);
    });
    let shut: Vec<_> = rehearsed["shut"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(shut, ["work"], "{rehearsed}");
    assert_eq!(rehearsed["held"], json!(["work"]), "{rehearsed}");
    let warned = "the backing directory of work is out of reach or changed: ".to_owned() + &why;
    assert_eq!(rehearsed["warnings"], json!([warned]), "{rehearsed}");
    node.ok("DELETE", "/v1/filesystems/work", &Value::Null).await;
    let rehearsed = node.post("/v1/kms/rehearse", &Value::Null).await;
    assert_eq!((&rehearsed["shut"], &rehearsed["exit"]), (&json!([]), &json!("done")));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_whose_answer_was_lost_can_be_repeated() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let create = async |node: &Running, key: &str, body: Value| {
        let headers = format!("{JSON}idempotency-key: {key}\r\n");
        node.ask_with(&headers, "POST", "/v1/filesystems", &body.to_string()).await
    };
    let home = json!({"name": "home"});
    let first = create(&node, "one", home.clone()).await;
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(create(&node, "one", home.clone()).await.body, first.body);
    node.stop().await;
    let node = world.start().await;
    node.until("/v1/filesystems/home", |fs| fs["state"] == "unlocked").await;
    assert_eq!(create(&node, "one", home.clone()).await.body, first.body);
    for other in [
        json!({"name": "other"}),
        json!({"name": "home", "allow_no_kms": true}),
        json!({"name": "home", "kms_key": "own"}),
        json!({"name": "home", "backing": world.path("elsewhere")}),
    ] {
        let reused = create(&node, "one", other).await;
        let told = (reused.status, &reused.body["code"], &reused.body["exit"]);
        assert_eq!(told, (422, &json!("idempotency-key-reused"), &json!("usage")), "{reused:?}");
    }
    assert_eq!(create(&node, "two", home.clone()).await.body["code"], "exists");
    node.refused(409, "POST", "/v1/filesystems", &home).await;
    for bad in ["", "two words", "\u{e9}", &"x".repeat(256), "a\r\nidempotency-key: b"] {
        let refused = create(&node, bad, home.clone()).await;
        assert_eq!((refused.status, &refused.body["code"]), (400, &json!("bad-request")), "{bad}");
    }
    assert_eq!(create(&node, &"x".repeat(255), json!({"name": "long"})).await.status, 200);
    node.stop().await;
}
