//! `fs kms` and its commands.

use std::fs;

use serde_json::{Value, json};

use crate::node::{Node, problem};

fn unset() -> Value {
    json!({"version": "none", "configured": null, "keys": [], "exposed_keys": 0, "findings": []})
}

fn set() -> Value {
    json!({
        "version": "v",
        "configured": {
            "id": "c", "kind": "vault", "base_url": "https://vault:8200", "master_key": "coffer-key",
            "transit_path": "transit", "auth_method": "token", "client_cert": false, "credential_set": true,
            "credential": {"seconds_left": 2_764_800, "renewable": true, "periodic": true, "told_seconds_ago": 0},
            "latest_version": 3, "min_decryption_version": 1, "lowest_needed": 2, "held_back_by": ["home", "the canary"],
            "problem": null,
            "does_all": true,
        },
        "keys": [
            {"kind": "vault", "base_url": "https://vault:8200", "transit_path": "transit", "master_key": "coffer-key", "version": 3, "keys": 2, "canary": false},
            {"kind": "vault", "base_url": "https://vault:8200", "transit_path": "transit", "master_key": "coffer-key", "version": 2, "keys": 0, "canary": true},
            {"kind": "local", "base_url": "", "transit_path": "", "master_key": "", "version": 1, "keys": 1, "canary": false},
        ],
        "exposed_keys": 1,
        "findings": [{"code": "key-deletable", "what": "coffer-key can be deleted", "cure": "forbid it"}],
    })
}

#[test]
fn without_a_configuration_it_says_that_kms_is_not_set() {
    let ran = Node::answering([("GET /v1/kms", 200, unset())]).run(&["fs", "kms"]);
    assert_eq!(
        ran.stdout,
        "\
KMS is not set
A filesystem made now would have its key wrapped locally, beside its data, and only with --allow-no-kms.
  do:  coffer fs kms set-vault <base-url> <master-key-name> --token-file FILE
filesystem keys:  none
exposed keys:     none
"
    );
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
}

#[test]
fn with_one_it_shows_all_but_the_token() {
    let ran = Node::answering([("GET /v1/kms", 200, set())]).run(&["fs", "kms"]);
    assert_eq!(
        ran.stdout,
        "\
KMS:              vault
base URL:         https://vault:8200
master key:       coffer-key
newest version:   3
lowest version:   1 (min_decryption_version)
lowest needed:    2 (min_decryption_version can go up to it)
held back by:     home, the canary
transit path:     transit
authentication:   token, set, 32 days left, periodic: renewed for ever
state:            answers
filesystem keys:  3 keys: 2 on version 3 of coffer-key, 1 wrapped locally
exposed keys:     1; they have lain under local wrapping and may be compromised
canary:           on version 2 of coffer-key; a rewrap renews what shows that it is still the same key
warning: coffer-key can be deleted
  do:  forbid it
"
    );
}

#[test]
fn json_is_the_nodes_own_answer() {
    let ran = Node::answering([("GET /v1/kms", 200, set())]).run(&["--json", "fs", "kms"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), set());
}

#[test]
fn a_token_reaches_the_node_by_each_way_and_is_never_shown() {
    let answer = json!({"change": "added", "kms": set(), "job": null});
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    fs::write(&file, "s.secret\n").unwrap();
    let base = ["fs", "kms", "set-vault", "https://vault:8200", "coffer-key"];
    let by_file = ["--token-file", file.to_str().unwrap()];
    for (how, stdin, noted) in [
        (&["s.secret"][..], "", true),
        (&by_file, "", false),
        (&["--token-stdin"], "s.secret\r\n", false),
    ] {
        let node = Node::answering([("PUT /v1/kms", 200, answer.clone())]);
        let ran = node.run_with_stdin(&[&base, how].concat(), stdin);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(
            ran.stdout,
            "the KMS is https://vault:8200 with the master key coffer-key\n\
             warning: coffer-key can be deleted\n  do:  forbid it\n"
        );
        assert_eq!(ran.stderr.contains("shows in the process list"), noted, "{ran:?}");
        assert!(!format!("{ran:?}").contains("s.secret"));
        assert_eq!(
            node.asked(),
            [(
                "PUT /v1/kms".to_owned(),
                json!({"base_url": "https://vault:8200", "master_key": "coffer-key",
                       "token": "s.secret", "allow_http": false})
            )]
        );
    }
}

#[test]
fn without_a_token_none_is_sent_so_that_the_node_keeps_its_own() {
    let answer = json!({"change": "updated", "kms": set(), "job": null});
    let node = Node::answering([("PUT /v1/kms", 200, answer)]);
    let ran = node.run(&["fs", "kms", "set-vault", "https://vault:8200", "coffer-key"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    let sent =
        json!({"base_url": "https://vault:8200", "master_key": "coffer-key", "allow_http": false});
    assert_eq!(node.asked(), [("PUT /v1/kms".to_owned(), sent)]);
}

#[test]
fn the_ways_to_show_who_we_are_reach_the_node() {
    let answer = json!({"change": "added", "kms": set(), "job": null});
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (token, secret_id) = (file("token", "s.secret"), file("secret-id", "s.secret\n"));
    let key = "-----BEGIN PRIVATE KEY-----\ns.secret\n-----END PRIVATE KEY-----\n";
    let (certificate, key_file) = (file("cert.pem", "CERT"), file("key.pem", key));
    let base = ["fs", "kms", "set-vault", "https://vault:8200", "coffer-key"];
    for (how, sent) in [
        (vec!["--token-file", &token, "--watch-token-file"], json!({"token_file": token})),
        (
            vec!["--role-id", "r", "--secret-id-file", &secret_id],
            json!({"role_id": "r", "secret_id": "s.secret"}),
        ),
        (
            vec!["--role-id", "r", "--secret-id-file", &secret_id, "--auth-path", "team/approle"],
            json!({"role_id": "r", "secret_id": "s.secret", "auth_path": "team/approle"}),
        ),
        (
            vec!["--token-file", &token, "--client-cert", &certificate, "--client-key", &key_file],
            json!({"token": "s.secret", "client_cert": "CERT", "client_key": key}),
        ),
    ] {
        let node = Node::answering([("PUT /v1/kms", 200, answer.clone())]);
        let ran = node.run(&[&base[..], &how].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(!format!("{ran:?}").contains("s.secret"));
        let mut request = json!({"base_url": "https://vault:8200", "master_key": "coffer-key", "allow_http": false});
        request.as_object_mut().unwrap().extend(sent.as_object().unwrap().clone());
        assert_eq!(node.asked(), [("PUT /v1/kms".to_owned(), request)]);
    }
    for wrong in [
        vec!["--watch-token-file"],
        vec!["--watch-token-file", "--token-stdin"],
        vec!["--role-id", "r"],
        vec!["--secret-id-file", &secret_id],
        vec!["--role-id", "r", "--secret-id-file", &secret_id, "--token-file", &token],
        vec!["--token-file", &token, "--auth-path", "approle"],
        vec!["--token-file", &token, "--client-cert", &certificate],
        vec!["--token-file", &token, "--client-cert", &certificate, "--client-key", &certificate],
    ] {
        let node = Node::answering([]);
        let ran = node.run(&[&base[..], &wrong].concat());
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(node.asked().is_empty());
    }
    let missing = ["--role-id", "r", "--secret-id-file", "/nowhere/at/all"];
    let ran = Node::answering([]).run(&[&base[..], &missing].concat());
    assert!(ran.stderr.contains("no secret id can be read from /nowhere/at/all"), "{ran:?}");
    assert!(!ran.stderr.contains("token"), "{ran:?}");
}

#[test]
fn what_a_check_did_not_prove_is_counted() {
    let item =
        |outcome| json!({"code": "c", "what": "w", "outcome": outcome, "found": "", "cure": null});
    for (outcomes, end) in [
        (&["passed"][..], "all is well"),
        (
            &["passed", "unknown"],
            "what could be looked at is well; 1 thing is unknown, and so not proved",
        ),
        (
            &["warning", "unknown", "unknown"],
            "it works, with 1 warning; 2 things are unknown, and so not proved",
        ),
    ] {
        let items: Vec<_> = outcomes.iter().map(item).collect();
        let check = json!({"exit": "done", "items": items});
        let ran =
            Node::answering([("POST /v1/kms/check", 200, check)]).run(&["fs", "kms", "check"]);
        assert_eq!(ran.stdout.lines().last(), Some(end), "{ran:?}");
    }
}

#[test]
fn how_the_node_shows_who_it_is_is_told() {
    for (details, line) in [
        (
            json!({"auth_method": "token-file", "token_file": "/run/vault/token"}),
            "the token in /run/vault/token, read again when it changes, set, 32 days left, periodic: renewed for ever",
        ),
        (
            json!({"auth_method": "approle", "role_id": "r-1"}),
            "approle, role id r-1, set, 32 days left, then it logs in again",
        ),
        (
            json!({"auth_method": "approle", "role_id": "r-1", "auth_path": "team/approle"}),
            "team/approle, role id r-1, set, 32 days left, then it logs in again",
        ),
        (
            json!({"auth_method": "approle", "role_id": "r-1",
                   "credential": {"seconds_left": 3600, "renewable": true, "periodic": false, "told_seconds_ago": 0}}),
            "approle, role id r-1, set, 60 minutes left, then no login is granted",
        ),
        (
            json!({"problem": problem(503, "kms-unreachable", None),
                   "credential": {"seconds_left": 3600, "renewable": true, "periodic": false, "told_seconds_ago": 300}}),
            "token, set, 60 minutes left, renewable up to its maximum (as it told 5 minutes ago, counted down since)",
        ),
    ] {
        let mut kms = set();
        let configured = kms["configured"].as_object_mut().unwrap();
        configured.extend(details.as_object().unwrap().clone());
        let ran = Node::answering([("GET /v1/kms", 200, kms)]).run(&["fs", "kms"]);
        assert!(ran.stdout.contains(&format!("authentication:   {line}\n")), "{ran:?}");
    }
}

#[test]
fn the_further_options_reach_the_node() {
    let answer = json!({"change": "updated", "kms": unset(), "job": null});
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    fs::write(&ca, "PEM").unwrap();
    let node = Node::answering([("PUT /v1/kms", 200, answer)]);
    let line = ["fs", "kms", "set-vault", "http://v:1", "k", "--token-stdin", "--namespace", "n"];
    let more = ["--transit-path", "t", "--allow-http", "--ca-cert", ca.to_str().unwrap()];
    assert_eq!(node.run_with_stdin(&[&line[..], &more].concat(), "tok").code, 0);
    assert_eq!(
        node.asked()[0].1,
        json!({"base_url": "http://v:1", "master_key": "k", "token": "tok", "namespace": "n",
               "transit_path": "t", "ca_cert": "PEM", "allow_http": true})
    );
}

#[test]
fn a_refused_configuration_says_so_and_ends_with_4() {
    let node = Node::answering([("PUT /v1/kms", 502, problem(502, "kms-refused", None))]);
    let ran = node.run_with_stdin(&["fs", "kms", "set-vault", "u", "k", "--token-stdin"], "t");
    assert_eq!((ran.code, ran.stderr.as_str()), (4, "error: what failed\n  why: why\n"));
}

#[test]
fn a_downgrade_is_confirmed_and_then_watched() {
    let change = json!({"change": "downgrading", "kms": set(), "job": job("running", 0)});
    let node = Node::answering([
        ("DELETE /v1/kms?allow_downgrade=true", 200, change),
        ("GET /v1/jobs/7?wait_ms=10000", 200, job("done", 2)),
    ]);
    let ran = node.run(&["fs", "kms", "unset", "--allow-downgrade"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.ends_with("do:  add --yes if this is what you want\n"), "{ran:?}");
    assert!(node.asked().is_empty());

    let ran = node.run(&["fs", "kms", "unset", "--allow-downgrade", "--yes"]);
    assert_eq!(
        ran.stdout,
        "every key moves under local wrapping\nthe token or secret id is not used any more, and may still lie on this node's disk; end it in \
         Vault: vault token revoke -accessor <its accessor>, or vault write auth/approle/role/<role>/secret-id-accessor/destroy \
         secret_id_accessor=<its accessor>\n\
         warning: coffer-key can be deleted\n  do:  forbid it\n\
         put the keys under local wrapping: 2 keys\n"
    );
    assert_eq!(ran.code, 0);
}

#[test]
fn with_json_a_change_is_answered_with_its_job_as_it_ended() {
    let change = json!({"change": "moving", "kms": set(), "job": job("running", 0)});
    let mut partly = job("partly", 1);
    partly["problem"] = problem(200, "partly", None);
    for (ended, code) in [(job("done", 2), 0), (partly, 8)] {
        let node = Node::answering([
            ("PUT /v1/kms", 200, change.clone()),
            ("GET /v1/jobs/7?wait_ms=10000", 200, ended.clone()),
        ]);
        // As an argument, of which only a person is told that it shows.
        let ran = node.run(&["fs", "kms", "set-vault", "https://v", "k", "s.token", "--json"]);
        assert_eq!(ran.code, code, "{ran:?}");
        let mut answer = change.clone();
        answer["job"] = ended.clone();
        assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), answer);
        match ended.get("problem") {
            None => assert_eq!(ran.stderr, ""),
            Some(told) => assert_eq!(serde_json::from_str::<Value>(&ran.stderr).unwrap(), *told),
        }
    }
}

#[test]
fn unset_destroys_nothing_and_asks_nothing() {
    let node = Node::answering([(
        "DELETE /v1/kms?allow_downgrade=false",
        409,
        problem(409, "state", Some("delete them")),
    )]);
    let ran = node.run(&["fs", "kms", "unset"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (5, "error: what failed\n  why: why\n  do:  delete them\n")
    );
}

#[test]
fn what_a_check_or_a_rehearsal_finds_is_a_problem_too() {
    let check = json!({"exit": "kms-refused", "items": [
        {"code": "answers", "what": "Vault answers", "outcome": "passed"},
        {"code": "may-rewrap", "what": "the token may rewrap", "outcome": "failed", "found": "it may not", "cure": "grant it"},
        {"code": "versions", "what": "every version is there", "outcome": "failed", "found": "1 is not", "cure": "lower it"},
    ]});
    let rehearsal = json!({"exit": "kms-refused", "open": 1, "held": [], "warnings": [], "logs_in": true, "credential_seconds_left": null, "until": null,
        "shut": [{"name": "home", "why": "it may not", "cure": "grant it"}]});
    for (command, answer, text) in [
        (
            "check",
            check,
            "error: the KMS does not do all that Coffer needs\n  \
             why: 2 failures, the first: the token may rewrap: it may not\n  do:  grant it\n",
        ),
        (
            "rehearse",
            rehearsal,
            "error: a start now would not open everything\n  \
             why: 1 filesystem, the first: home: it may not\n  do:  grant it\n",
        ),
    ] {
        let request = format!("POST /v1/kms/{command}");
        let node = Node::answering([(request.as_str(), 200, answer.clone())]);
        let ran = node.run(&["fs", "kms", command]);
        assert_eq!((ran.code, ran.stderr.as_str()), (4, text));
        let logged_in = ran.stdout.contains("this took a login: of a secret id");
        assert_eq!(logged_in, command == "rehearse", "what it cost is told: {ran:?}");
        let ran = node.run(&["fs", "kms", command, "--json"]);
        assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), answer);
        let told: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!(
            (ran.code, &told["exit"], &told["cure"]),
            (4, &json!("kms-refused"), &json!("grant it"))
        );
    }
}

/// All opens, and the login that showed it was the last.
#[test]
fn a_rehearsal_that_took_the_last_login_is_no_success() {
    let told = |starts_left: u64, exit: &str| {
        json!({
            "open": 2, "shut": [], "held": [], "credential_seconds_left": null, "until": null, "warnings": [],
            "logs_in": true, "starts_left": starts_left, "exit": exit,
        })
    };
    let node = Node::answering([("POST /v1/kms/rehearse", 200, told(0, "kms-refused"))]);
    let ran = node.run(&["fs", "kms", "rehearse"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(
        ran.stdout.starts_with("2 filesystems can be opened, but a start now would"),
        "{ran:?}"
    );
    assert!(ran.stderr.contains("the secret id is good for no login any more"), "{ran:?}");
    let node = Node::answering([("POST /v1/kms/rehearse", 200, told(3, "done"))]);
    let ran = node.run(&["fs", "kms", "rehearse"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (
            0,
            "a start now would succeed: 2 filesystems can be opened\n\
             this took a login, and the secret id is good for 3 more: each start takes one\n"
        )
    );
}

#[test]
fn rewrap_is_watched_to_its_end() {
    let node = Node::answering([
        ("POST /v1/kms/rewrap", 200, job("running", 0)),
        ("GET /v1/jobs/7?wait_ms=10000", 200, job("running", 1)),
        ("GET /v1/jobs/7?wait_ms=10000", 200, rewrapped()),
    ]);
    let ran = node.run(&["fs", "kms", "rewrap"]);
    assert_eq!(ran.stdout, "rewrapped the keys of all filesystems: 2 keys\n");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "nothing of the progress in a pipe");
    assert_eq!(node.asked().len(), 3);

    let mut none_moved = rewrapped();
    none_moved["keys_already"] = json!(2);
    let node = Node::answering([("POST /v1/kms/rewrap", 200, none_moved)]);
    let ran = node.run(&["fs", "kms", "rewrap"]);
    assert_eq!(
        ran.stdout,
        "current already: 2 keys under the newest version of the master key, not wrapped anew\n\
         rewrapped the keys of all filesystems: 2 keys\n"
    );
}

#[test]
fn one_filesystem_s_key_is_rewrapped_alone() {
    let mut of_home = rewrapped();
    of_home["filesystem"] = "home".into();
    of_home["progress"]["items"] = 1.into();
    let node = Node::answering([("POST /v1/kms/rewrap", 200, of_home)]);
    let ran = node.run(&["fs", "kms", "rewrap", "home"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "rewrapped the key of home: 1 key\n"));
    assert_eq!(node.asked()[0].1, json!({"filesystem": "home"}));
}

#[test]
fn why_a_job_waits_is_told_once() {
    let mut waiting = job("waiting", 0);
    waiting["problem"] = problem(503, "kms-unreachable", Some("unseal it"));
    for (args, told) in [
        (&["fs", "kms", "rewrap"][..], "note: the downgrade waits: why\n      do:  unseal it\n"),
        (&["fs", "kms", "rewrap", "--json"][..], ""),
    ] {
        let node = Node::answering([
            ("POST /v1/kms/rewrap", 200, job("running", 0)),
            ("GET /v1/jobs/7?wait_ms=10000", 200, waiting.clone()),
            ("GET /v1/jobs/7?wait_ms=10000", 200, waiting.clone()),
            ("GET /v1/jobs/7?wait_ms=10000", 200, job("done", 2)),
        ]);
        let ran = node.run(args);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, told));
        assert_eq!(node.asked().len(), 4);
    }
}

#[test]
fn a_job_that_stands_still_while_the_kms_is_away_ends_its_command() {
    let mut waiting = job("waiting", 1);
    waiting["problem"] = problem(503, "kms-unreachable", Some("unseal it"));
    let node = Node::answering([
        ("POST /v1/kms/rewrap", 200, job("running", 0)),
        // It has gone on before it waits, and then no more.
        ("GET /v1/jobs/7?wait_ms=250", 200, waiting.clone()),
        ("GET /v1/jobs/7?wait_ms=250", 200, job("running", 1)),
        ("GET /v1/jobs/7?wait_ms=250", 200, waiting.clone()),
    ]);
    let ran = node.run(&["fs", "kms", "rewrap", "--wait", "1"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (
            3,
            "\
note: the downgrade waits: why
      do:  unseal it
error: the downgrade has not ended yet
  why: it has not gone on for 1 s: why
  do:  unseal it; see it with coffer job show 7, stop it with coffer job stop 7; once that is mended the job goes on
"
        )
    );
}

fn job(state: &str, items: u64) -> Value {
    json!({
        "id": "7", "kind": "downgrade", "state": state, "resumed": false, "created_at": 0,
        "progress": {"items": items, "total_items": 2, "failed_items": 0, "bytes": 0, "total_bytes": null},
    })
}

fn rewrapped() -> Value {
    let mut job = job("done", 2);
    job["kind"] = "rewrap".into();
    job
}

/// As [`set`], with two master keys that filesystems have of their own.
fn with_own_keys() -> Value {
    let mut kms = set();
    kms["configured"]["own_keys"] = json!([
        {"master_key": "tenant-a", "filesystems": 2, "latest_version": 4,
         "min_decryption_version": 1, "lowest_needed": 3, "held_back_by": ["t1"], "problem": null, "does_all": true},
        {"master_key": "tenant-b", "filesystems": 1, "latest_version": null,
         "min_decryption_version": null, "lowest_needed": null, "problem": problem(409, "kms-refused", None), "does_all": false},
    ]);
    let keys = kms["keys"].as_array_mut().unwrap();
    keys.push(json!({"kind": "vault", "base_url": "https://vault:8200", "transit_path": "transit", "master_key": "tenant-a", "version": 4, "keys": 2, "canary": false}));
    keys.push(
        json!({"kind": "vault", "base_url": "https://vault:8200", "transit_path": "transit", "master_key": "tenant-a", "version": 3, "keys": 0, "canary": true}),
    );
    kms
}

#[test]
fn one_that_answers_and_fails_at_something_is_not_said_to_be_well() {
    let mut kms = set();
    kms["configured"]["does_all"] = json!(false);
    let ran = Node::answering([("GET /v1/kms", 200, kms)]).run(&["fs", "kms"]);
    let state =
        "state:            answers, but does not do all that Coffer needs (a warning says why)\n";
    assert!(ran.stdout.contains(state), "{}", ran.stdout);
}

#[test]
fn master_keys_of_filesystems_own_are_told_apart() {
    let node = Node::answering([("GET /v1/kms", 200, with_own_keys())]);
    let ran = node.run(&["fs", "kms"]);
    for line in [
        "master key:       coffer-key",
        "also in use:      tenant-a, of 2 filesystems, newest version 4, lowest version 1, lowest needed 3, held back by t1",
        "also in use:      tenant-b, of 1 filesystem, newest version not known now, lowest version not known now, lowest needed not known now, does not do all that Coffer needs (the state or a warning says why)",
        "filesystem keys:  5 keys: 2 on version 3 of coffer-key, 1 wrapped locally, 2 on version 4 of tenant-a",
        "canary:           on version 2 of coffer-key; a rewrap renews what shows that it is still the same key",
        "canary:           on version 3 of tenant-a; a rewrap renews what shows that it is still the same key",
    ] {
        assert!(ran.stdout.lines().any(|shown| shown == line), "{line}: {}", ran.stdout);
    }
    let shown = node.run(&["--json", "fs", "kms"]);
    assert_eq!(serde_json::from_str::<Value>(&shown.stdout).unwrap(), with_own_keys());
}

#[test]
fn master_keys_of_one_name_in_several_places_are_told_apart() {
    let mut kms = set();
    let keys = kms["keys"].as_array_mut().unwrap();
    keys[1]["base_url"] = "https://old:8200".into();
    keys[1]["transit_path"] = "team/transit".into();
    keys[1]["namespace"] = "n".into();
    keys[1]["keys"] = 4.into();
    let node = Node::answering([("GET /v1/kms", 200, kms.clone())]);
    let ran = node.run(&["fs", "kms"]);
    let line = "filesystem keys:  7 keys: 2 on version 3 of coffer-key at https://vault:8200, \
                4 on version 2 of coffer-key at https://old:8200 in team/transit in the namespace n, 1 wrapped locally";
    assert!(ran.stdout.lines().any(|shown| shown == line), "{}", ran.stdout);
    let shown = node.run(&["--json", "fs", "kms"]);
    assert_eq!(serde_json::from_str::<Value>(&shown.stdout).unwrap(), kms);
}

#[test]
fn what_is_asked_of_one_master_key_names_it() {
    let impact = json!({
        "what": "w", "go_on": [], "shut_now": [], "shut_at_start": [], "untouched": [], "unknown": [],
        "stops_wrapping": false, "cure": "c",
    });
    let base = ["fs", "kms", "impact"];
    for (arguments, query) in [
        (&["--delete-key"][..], "of=key"),
        (&["--delete-key", "--kms-key", "tenant-a"], "of=key&master_key=tenant-a"),
        (&["--min-version", "3", "--kms-key", "a&b"], "of=versions&below=3&master_key=a%26b"),
        (&["--revoke-token"], "of=token"),
    ] {
        let path = format!("GET /v1/kms/impact?{query}");
        let ran = Node::answering([(path.as_str(), 200, impact.clone())])
            .run(&[&base, arguments].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    let node = Node::answering([]);
    for arguments in [&["--revoke-token", "--kms-key", "k"][..], &["--kms-key", "k"]] {
        assert_eq!(node.run(&[&base, arguments].concat()).code, 2, "{arguments:?}");
    }
}
