//! `status`, `fs …` and `job …`.

use std::env;

use serde_json::{Value, json};

use crate::node::{Node, problem};

fn filesystem(name: &str, state: &str) -> Value {
    json!({
        "name": name, "created_at": 1_700_000_000_000_u64, "backing": format!("/srv/{name}"),
        "state": state, "key_id": "6f1c", "exposed": false,
        "wrapped_by": {"kind": "vault", "master_key": "coffer-key", "version": 2},
    })
}

fn job(kind: &str, state: &str) -> Value {
    json!({
        "id": "7", "kind": kind, "filesystem": "home", "path": "/src", "state": state,
        "resumed": false, "created_at": 0,
        "progress": {"items": 2, "total_items": 4, "failed_items": 0, "bytes": 1536, "total_bytes": 3072},
    })
}

#[test]
fn status_is_short_and_warns() {
    let answer = json!({
        "version": "0.1.0", "pid": 42, "started_at": 0, "state_dir": "/var/lib/coffer",
        "filesystems": {"total": 5, "unlocked": 2, "locked": 1, "unlocking": 2, "exposed": 1},
        "jobs_running": 0,
        "kms": {"configured": null, "keys": [], "exposed_keys": 1, "findings": []},
        "findings": [{"code": "memory-unlocked", "what": "keys may be swapped out", "cure": "raise it"}],
    });
    let ran = Node::answering([("GET /v1/status", 200, answer)]).run(&["status"]);
    assert_eq!(
        ran.stdout,
        "\
node:             coffer 0.1.0, process 42
running since:    1970-01-01T00:00:00Z
state directory:  /var/lib/coffer
KMS:              not set
filesystems:      5: 2 unlocked, 1 locked, 2 being unlocked, 1 exposed
running jobs:     none
warning: keys may be swapped out
  do:  raise it
"
    );
    assert_eq!(ran.code, 0);
}

#[test]
fn create_makes_paths_absolute_and_shows_what_was_made() {
    let node = Node::answering([("POST /v1/filesystems", 201, filesystem("home", "unlocked"))]);
    let ran = node.run(&["fs", "create", "home", "--encrypted", "--backing", "data"]);
    assert_eq!(ran.stdout, "home is made in /srv/home; its key is wrapped by coffer-key v2\n");
    let here = env::current_dir().unwrap().join("data");
    assert_eq!(
        node.asked()[0].1,
        json!({"name": "home", "backing": here.to_str().unwrap(), "allow_no_kms": false})
    );
}

#[test]
fn create_while_the_kms_is_away_ends_with_3() {
    let node =
        Node::answering([("POST /v1/filesystems", 503, problem(503, "kms-unreachable", None))]);
    assert_eq!(node.run(&["fs", "create", "home"]).code, 3);
}

#[test]
fn names_go_to_the_node_as_they_are() {
    let node =
        Node::answering([("GET /v1/filesystems/a%2F..%2Fb%0A", 400, problem(400, "usage", None))]);
    assert_eq!(node.run(&["fs", "show", "a/../b\n"]).code, 2);
}

#[test]
fn list_reads_every_page_and_says_why_one_is_locked() {
    let mut locked = filesystem("work", "locked");
    locked["problem"] = problem(503, "kms-unreachable", Some("bring it back"));
    let mut home = filesystem("home", "unlocked");
    home["findings"] = json!([{"code": "c", "what": "home is not there", "cure": "look"}]);
    let mut begun = filesystem("zoo", "unlocking");
    begun["problem"] = problem(503, "kms-unreachable", Some("wait"));
    let node = Node::answering([
        ("GET /v1/filesystems", 200, json!({"filesystems": [home], "next": "home"})),
        ("GET /v1/filesystems?after=home", 200, json!({"filesystems": [locked, begun]})),
    ]);
    let ran = node.run(&["fs", "list"]);
    assert_eq!(
        ran.stdout,
        "\
NAME  STATE      KEY WRAPPED BY  EXPOSED  BACKING
home  unlocked   coffer-key v2   no       /srv/home
work  locked     coffer-key v2   no       /srv/work
zoo   unlocking  coffer-key v2   no       /srv/zoo
warning: home is not there
  do:  look
work is locked: why
  do:  bring it back
zoo is being unlocked: why
  do:  wait
"
    );
    let json: Value = serde_json::from_str(&node.run(&["fs", "list", "--json"]).stdout).unwrap();
    assert_eq!(json["filesystems"].as_array().unwrap().len(), 3);
}

#[test]
fn show_says_all_of_it() {
    let node = Node::answering([("GET /v1/filesystems/home", 200, filesystem("home", "unlocked"))]);
    assert_eq!(
        node.run(&["fs", "show", "home"]).stdout,
        "\
filesystem:  home
state:       unlocked
backing:     /srv/home
key:         6f1c
wrapped by:  coffer-key v2
exposed:     no
made:        2023-11-14T22:13:20Z
"
    );
}

#[test]
fn show_says_what_a_filesystem_is_being_re_encrypted_from() {
    let mut home = filesystem("home", "unlocked");
    home["exposed"] = true.into();
    home["previous_key_id"] = "2a5e".into();
    let node = Node::answering([("GET /v1/filesystems/home", 200, home)]);
    assert_eq!(
        node.run(&["fs", "show", "home"]).stdout,
        "\
filesystem:  home
state:       unlocked
backing:     /srv/home
key:         6f1c
old key:     2a5e; the filesystem is being re-encrypted, and what is not done lies under this one
wrapped by:  coffer-key v2
exposed:     yes; its key has lain under local wrapping and may be compromised
             with a KMS set, coffer fs rekey home gives it a new one
made:        2023-11-14T22:13:20Z
"
    );
}

#[test]
fn rekey_is_watched_like_a_copy() {
    let mut waits = job("rekey", "waiting");
    waits["problem"] = problem(503, "kms-unreachable", Some("wait"));
    let node = Node::answering([
        ("POST /v1/filesystems/home/rekey", 200, waits),
        ("GET /v1/jobs/7?wait_ms=10000", 200, job("rekey", "done")),
    ]);
    let ran = node.run(&["fs", "rekey", "home"]);
    assert_eq!(
        (ran.stdout.as_str(), ran.code),
        ("re-encrypted home under its new key: 2 items, 1.50 KiB\n", 0)
    );
}

#[test]
fn what_does_not_exist_can_not_be_deleted() {
    let node = Node::answering([("GET /v1/filesystems/nope", 404, problem(404, "state", None))]);
    let ran = node.run(&["fs", "delete", "nope", "--yes"]);
    assert_eq!(ran.code, 5);
    assert!(ran.stderr.starts_with("error: the filesystem nope can't be deleted\n"), "{ran:?}");
}

#[test]
fn delete_takes_yes_and_says_which_copies_remain() {
    let deleted = json!({
        "name": "home", "key_id": "6f1c", "removed": ["/srv/ho\nme"],
        "remaining": ["s3://bucket/home@monday"],
    });
    let forgotten = json!({
        "name": "home", "key_id": "6f1c", "removed": [], "remaining": ["/srv/home, as it is"],
    });
    let node = Node::answering([
        ("GET /v1/filesystems/home", 200, filesystem("home", "unlocked")),
        ("DELETE /v1/filesystems/home?forget=false", 200, deleted),
        ("DELETE /v1/filesystems/home?forget=true", 200, forgotten),
    ]);
    let ran = node.run(&["fs", "delete", "home"]);
    assert_eq!(ran.code, 2);
    assert_eq!(
        ran.stderr,
        "\
error: deleting home was not confirmed
  why: all data in /srv/home and every copy of its wrapped key here are lost, and there is no terminal to ask on
  do:  add --yes if this is what you want
"
    );
    assert!(node.asked().iter().all(|(request, _)| request.starts_with("GET ")));
    assert_eq!(
        node.run(&["fs", "delete", "home", "--yes"]).stdout,
        "\
home is deleted
  removed a copy of its wrapped key: /srv/ho\\x0Ame
  left, with a copy of its key that may open: s3://bucket/home@monday
"
    );
    assert_eq!(
        node.run(&["fs", "delete", "home", "--forget", "--yes"]).stdout,
        "home is forgotten\n  left, with a copy of its key that may open: /srv/home, as it is\n"
    );
}

#[test]
fn lock_and_unlock_say_how_it_is_now() {
    let node = Node::answering([
        ("POST /v1/filesystems/home/lock", 200, filesystem("home", "locked")),
        ("POST /v1/filesystems/home/unlock", 200, filesystem("home", "unlocked")),
    ]);
    assert_eq!(node.run(&["fs", "lock", "home", "--force"]).stdout, "home is locked\n");
    assert_eq!(node.run(&["fs", "unlock", "home"]).stdout, "home is unlocked\n");
    assert_eq!(node.asked()[0].1, json!({"force": true}));
}

#[test]
fn import_is_watched_and_a_resumed_one_says_so() {
    let mut resumed = job("import", "running");
    resumed["resumed"] = true.into();
    let mut done = job("import", "done");
    done["resumed"] = true.into();
    let node = Node::answering([
        ("POST /v1/filesystems/home/import", 200, resumed),
        ("GET /v1/jobs/7?wait_ms=10000", 200, done),
    ]);
    let ran = node.run(&["fs", "import", "home", "/src"]);
    assert_eq!(
        ran.stdout,
        "\
taken up: an earlier run did a part, and what has changed in that part since is not seen; the same command again brings it along
imported into home: 2 items, 1.50 KiB
"
    );
    assert_eq!(
        ran.stderr,
        "note: an earlier run of this was stopped: what it did and still holds is not done again\n"
    );
    assert_eq!(ran.code, 0);
    assert_eq!(node.asked()[0].1, json!({"source": "/src"}));
}

#[test]
fn owners_that_could_not_be_kept_are_told_once() {
    let mut done = job("import", "done");
    done["owners_lost"] = 2.into();
    let node = Node::answering([
        ("POST /v1/filesystems/home/import", 200, done.clone()),
        ("GET /v1/jobs/7", 200, done),
    ]);
    let ran = node.run(&["fs", "import", "home", "/src"]);
    assert_eq!(
        ran.stdout,
        "\
owners: not kept for 2 items; only a node that runs as root keeps them, where the disk lets it
imported into home: 2 items, 1.50 KiB
"
    );
    assert_eq!(ran.code, 0);
    let shown = node.run(&["job", "show", "7"]).stdout;
    assert!(shown.contains("owners:      not kept for 2 items; only a node"), "{shown}");
    let json: Value =
        serde_json::from_str(&node.run(&["job", "show", "7", "--json"]).stdout).unwrap();
    assert_eq!(json["owners_lost"], 2);
}

#[test]
fn a_stopped_export_is_partly_done() {
    let node = Node::answering([
        ("POST /v1/filesystems/home/export", 200, job("export", "running")),
        ("GET /v1/jobs/7?wait_ms=10000", 200, job("export", "stopped")),
    ]);
    let ran = node.run(&["fs", "export", "home", "/target"]);
    assert_eq!(ran.code, 8);
    assert_eq!(ran.stdout, "the export of home was stopped; done before: 2 items, 1.50 KiB\n");
    assert_eq!(
        ran.stderr,
        "error: the export is not complete\n  why: it was stopped\n  do:  give the same command again: it goes on from there\n"
    );
}

#[test]
fn verify_names_what_is_damaged_and_ends_with_6() {
    let mut damaged = job("verify", "partly");
    damaged["progress"]["failed_items"] = 1.into();
    damaged["damage"] = json!([{"path": "letters/a%1B", "kind": "damaged", "ciphertext": "root/x", "what": "block 3 was altered\nverified home: all of it"}]);
    damaged["problem"] = problem(500, "not-authentic", None);
    let node = Node::answering([
        ("POST /v1/filesystems/home/verify", 200, job("verify", "running")),
        ("GET /v1/jobs/7?wait_ms=10000", 200, damaged),
    ]);
    let ran = node.run(&["fs", "verify", "home", "--repair"]);
    assert_eq!(
        ran.stdout,
        "\
damaged: letters/a\\x1B: block 3 was altered\\x0Averified home: all of it
  ciphertext: root/x
verified home: 2 items, 1.50 KiB; 1 failed
"
    );
    assert_eq!((ran.code, ran.stderr.as_str()), (6, "error: what failed\n  why: why\n"));
    assert_eq!(node.asked()[0].1, json!({"repair": true}));
}

#[test]
fn every_page_of_what_a_job_could_not_do_is_read() {
    let skipped = |name: &str| json!([{"path": name, "kind": "skipped", "what": "a socket"}]);
    let mut first = job("import", "partly");
    first["damage"] = skipped("a");
    first["next_damage"] = 1.into();
    let mut second = job("import", "partly");
    second["damage"] = skipped("b");
    let node = Node::answering([
        ("GET /v1/jobs/7", 200, first),
        ("GET /v1/jobs/7?damage_after=1", 200, second),
    ]);
    let shown = node.run(&["job", "show", "7"]).stdout;
    assert!(shown.ends_with("skipped: a: a socket\nskipped: b: a socket\n"), "{shown}");
}

#[test]
fn a_job_that_runs_tells_its_pace() {
    let of = |kind: &str, pace: Value| {
        let mut running = job(kind, "running");
        running["progress"]["pace"] = pace;
        let node = Node::answering([("GET /v1/jobs/7", 200, running)]);
        node.run(&["job", "show", "7"]).stdout
    };
    let pace = json!({"items_per_second": 900, "bytes_per_second": 512, "seconds_left": 3});
    let (files, keys) = (of("import", pace.clone()), of("rewrap", pace));
    assert!(files.contains("of 3.00 KiB, 512 B/s, 3 seconds left\n"), "{files}");
    assert!(keys.contains("2 keys of 4, 900/s, 3 seconds left\n"), "{keys}");
    let unknown = of("rewrap", json!({"items_per_second": 0, "bytes_per_second": 0}));
    assert!(unknown.contains("2 keys of 4, 0/s\n"), "{unknown}");
}

#[test]
fn while_a_filesystem_is_locked_its_files_are_not_named() {
    let mut sealed = job("import", "partly");
    sealed["progress"]["failed_items"] = 2.into();
    sealed["names_sealed"] = true.into();
    let node = Node::answering([("GET /v1/jobs/7", 200, sealed)]);
    let shown = node.run(&["job", "show", "7"]).stdout;
    assert!(
        shown.ends_with("2 problems, named while home is unlocked: coffer job show 7\n"),
        "{shown}"
    );
}

#[test]
fn with_json_the_job_is_the_answer_and_its_problem_is_on_stderr() {
    let mut resumed = job("export", "running");
    resumed["resumed"] = true.into();
    for (state, own, code) in
        [("stopped", None, 8), ("failed", None, 1), ("partly", Some("not-authentic"), 6)]
    {
        let mut ended = job("export", state);
        if let Some(exit) = own {
            ended["problem"] = problem(500, exit, None);
        }
        let node = Node::answering([
            ("POST /v1/filesystems/home/export", 200, resumed.clone()),
            ("GET /v1/jobs/7?wait_ms=10000", 200, ended.clone()),
        ]);
        let ran = node.run(&["fs", "export", "home", "/target", "--json"]);
        assert_eq!(ran.code, code, "{ran:?}");
        assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), ended);
        let told: Value = serde_json::from_str(&ran.stderr).unwrap();
        match own {
            Some(_) => assert_eq!(told, ended["problem"]),
            None => assert_eq!(told["title"], "the export is not complete"),
        }
    }
}

#[test]
fn a_node_that_dies_under_a_job_is_told() {
    let node =
        Node::answering([("POST /v1/filesystems/home/import", 200, job("import", "running"))]);
    // The job's own resource is not in the script: an answer that is none.
    assert_eq!(node.run(&["fs", "import", "home", "/src"]).code, 1);
}

#[test]
fn ls_shows_bytes_that_are_no_text_and_upsets_no_terminal() {
    let entry = |name: &str, kind: &str| {
        json!({"name": name, "kind": kind, "size": 5, "mode": 0o754, "uid": 0, "gid": 0,
               "modified_at": 0})
    };
    let mut link = entry("l", "symlink");
    link["target"] = "a b".into();
    let node = Node::answering([
        (
            "GET /v1/filesystems/home/ls?path=x%2Fy",
            200,
            json!({"entries": [entry("a%FF%0A", "file")], "next": "a%FF%0A"}),
        ),
        (
            "GET /v1/filesystems/home/ls?path=x%2Fy&after=a%25FF%250A",
            200,
            json!({"entries": [link, entry("n", "character-device"), entry("o", "block-device"),
                               entry("p", "fifo")]}),
        ),
    ]);
    let ran = node.run(&["fs", "ls", "home", "x/y"]);
    assert_eq!(
        ran.stdout,
        "\
-rwxr-xr--  5  1970-01-01T00:00:00Z  a\\xFF\\x0A
lrwxr-xr--  5  1970-01-01T00:00:00Z  l -> a b
crwxr-xr--  5  1970-01-01T00:00:00Z  n
brwxr-xr--  5  1970-01-01T00:00:00Z  o
prwxr-xr--  5  1970-01-01T00:00:00Z  p
"
    );
}

#[test]
fn ls_ends_by_the_worst_that_it_could_not_list() {
    let thing = |kind: &str, what: &str| json!({"path": "", "ciphertext": kind, "kind": kind, "what": what});
    let strange = thing("leftover", "it is nothing that Coffer put there");
    let (unread, damaged) = (thing("io", "Input/output error"), thing("damaged", "it was altered"));
    let list = |unreadable: Vec<Value>, omitted: u64| {
        let listing =
            json!({"entries": [], "unreadable": unreadable, "unreadable_omitted": omitted});
        Node::answering([("GET /v1/filesystems/home/ls?path=x", 200, listing)])
            .run(&["fs", "ls", "home", "x"])
    };
    let ran = list(vec![strange.clone()], 0);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (0, "note: passed over:\n      leftover: it is nothing that Coffer put there\n")
    );
    let ran = list(vec![strange, unread.clone()], 2);
    assert_eq!(ran.code, 8);
    assert!(
        ran.stderr.contains("leftover: ") && ran.stderr.contains("and 2 more"),
        "{}",
        ran.stderr
    );
    let ran = list(vec![unread, damaged], 0);
    assert_eq!(ran.code, 6);
    assert!(ran.stderr.contains("damaged: it was altered"), "{}", ran.stderr);
}

#[test]
fn jobs_are_listed_shown_and_stopped() {
    let node = Node::answering([
        ("GET /v1/jobs", 200, json!({"jobs": [job("import", "running")]})),
        ("GET /v1/jobs/7", 200, job("import", "waiting")),
        ("POST /v1/jobs/7/stop", 200, job("import", "stopping")),
    ]);
    assert_eq!(
        node.run(&["job", "list"]).stdout,
        "\
ID  JOB     FILESYSTEM  STATE  PROGRESS                      SINCE
7   import  home        runs   2 items, 1.50 KiB of 3.00 KiB  1970-01-01T00:00:00Z
"
        .replace("PROGRESS                      SINCE", "PROGRESS                       SINCE")
    );
    assert_eq!(
        node.run(&["job", "show", "7"]).stdout,
        "\
job:         7
kind:        import
filesystem:  home
directory:   /src
state:       waits
progress:    2 items, 1.50 KiB of 3.00 KiB
since:       1970-01-01T00:00:00Z
"
    );
    assert_eq!(node.run(&["job", "stop", "7"]).stdout, "the import stops\n");
}

#[test]
fn all_pages_of_jobs_are_listed() {
    let of = |id: &str| {
        let mut job = job("verify", "done");
        job["id"] = id.into();
        job
    };
    let node = Node::answering([
        ("GET /v1/jobs", 200, json!({"jobs": [of("3"), of("2")], "next": "5-2"})),
        ("GET /v1/jobs?after=5-2", 200, json!({"jobs": [of("1")]})),
    ]);
    let listed = node.run(&["job", "list"]).stdout;
    let ids: Vec<&str> = listed.lines().skip(1).map(|line| &line[..1]).collect();
    assert_eq!(ids, ["3", "2", "1"], "{listed}");
    let listed: serde_json::Value =
        serde_json::from_str(&node.run(&["job", "list", "--json"]).stdout).unwrap();
    assert_eq!(listed["jobs"].as_array().unwrap().len(), 3, "{listed}");
}

#[test]
fn why_a_job_waits_is_listed() {
    let mut waits = job("rekey", "waiting");
    waits["problem"] = json!({
        "code": "store-failed", "title": "t", "detail": "no room", "cure": "make some", "status": 500, "exit": "failed",
    });
    let node = Node::answering([("GET /v1/jobs", 200, json!({"jobs": [waits]}))]);
    let listed = node.run(&["job", "list"]).stdout;
    assert_eq!(listed.lines().last(), Some("7 waits: no room"), "{listed}");
}

#[test]
fn a_master_key_of_its_own_reaches_the_node_and_is_shown() {
    let mut fs = filesystem("home", "unlocked");
    fs["own_master_key"] = "tenant-a".into();
    fs["wrapped_by"]["master_key"] = "tenant-a".into();
    let node = Node::answering([
        ("POST /v1/filesystems", 200, fs.clone()),
        ("GET /v1/filesystems/home", 200, fs),
    ]);
    let made = node.run(&["fs", "create", "home", "--kms-key", "tenant-a"]);
    assert_eq!(made.stdout, "home is made in /srv/home; its key is wrapped by tenant-a v2\n");
    let request = json!({"name": "home", "allow_no_kms": false, "kms_key": "tenant-a"});
    assert_eq!(node.asked()[0], ("POST /v1/filesystems".to_owned(), request));
    let shown = node.run(&["fs", "show", "home"]).stdout;
    assert!(shown.contains("\nown master key:  tenant-a\n"), "{shown}");
}
