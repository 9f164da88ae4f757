//! What needs no node, and what happens when none answers.

use std::os::unix::net::UnixListener;

use serde_json::Value;

use crate::node::{Node, problem, run};

#[test]
fn wrong_usage_ends_with_2_and_says_what_was_wrong() {
    for line in [
        &["coffer", "fs", "crate", "home"][..],
        &["coffer", "fs", "show"],
        &["coffer", "fs", "show", ""],
        &["coffer", "fs", "show", ".."],
        &["coffer", "fs", "kms", "set-vault", "http://v", "k", "t", "--token-stdin"],
        &[
            "coffer",
            "fs",
            "kms",
            "set-vault",
            "http://v",
            "k",
            "--token-file",
            "f",
            "--token-stdin",
        ],
    ] {
        let ran = run(line.iter().copied(), "");
        assert_eq!(ran.code, 2, "{line:?}: {ran:?}");
        assert!(ran.stderr.starts_with("error: "), "{line:?}: {ran:?}");
        assert_eq!(ran.stdout, "");
    }
}

#[test]
fn with_json_wrong_usage_is_a_problem_like_any_other() {
    for (line, why, cure) in [
        (&["nosuch", "--json"][..], "unrecognized subcommand 'nosuch'", "--help"),
        (&["fs", "crate", "--output", "json"], "unrecognized subcommand 'crate'", "'create'"),
        (
            &["--output=json", "fs", "create"],
            "the following required arguments were not provided: <NAME>",
            "Usage: coffer fs create",
        ),
        (&["--json", "fs"], "a command is missing", "--help"),
        (&["status", "--json", "--output", "text"], "cannot be used with", "Usage: "),
        (&["fs", "show", "..", "--json"], "name directories", "--help"),
        (&["--output", "json", "status", "--socket"], "a value is required", "--help"),
        (&["fs", "kms", "--json", "set-vault", "http://v"], "<MASTER_KEY_NAME>", "Usage: "),
    ] {
        let ran = run([&["coffer"], line].concat(), "");
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{line:?}: {ran:?}");
        let problem: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!((&problem["code"], &problem["exit"]), (&"usage".into(), &"usage".into()));
        assert!(problem["detail"].as_str().unwrap().contains(why), "{problem}");
        assert!(problem["cure"].as_str().unwrap().contains(cure), "{problem}");
    }
    // After -- there are no options.
    let ran = run(["coffer", "fs", "nosuch", "--", "--json"], "");
    assert!(ran.stderr.starts_with("error: "), "{ran:?}");
}

#[test]
fn what_a_node_asks_of_itself_is_shown_to_nobody() {
    for line in [
        &["coffer", "--help"][..],
        &["coffer", "--json"],
        &["coffer", "rehearse", "--json"],
        &["coffer", "completions", "bash"],
        &["coffer", "completions", "zsh"],
        &["coffer", "man"],
    ] {
        let ran = run(line.iter().copied(), "");
        assert!(!format!("{ran:?}").contains("rehearse-store"), "{line:?}: {ran:?}");
    }
    let ran = run(["coffer", "rehearse-store"], "");
    assert_eq!(ran.code, 2, "{ran:?}");
}

#[test]
fn help_stays_text() {
    for line in [["coffer", "--json", "--help"], ["coffer", "--version", "--json"]] {
        let ran = run(line, "");
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        assert!(ran.stdout.contains("coffer"), "{ran:?}");
    }
}

#[test]
fn help_and_version_end_with_0() {
    let ran = run(["coffer", "fs", "kms", "set-vault", "--help"], "");
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.contains("--token-stdin"));
    let ran = run(["coffer", "--version"], "");
    assert_eq!((ran.code, ran.stdout), (0, format!("coffer {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn completions_and_the_manual_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(["coffer", "completions", shell], "");
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.contains("set-vault"), "{shell}");
    }
    assert!(run(["coffer", "man"], "").stdout.contains(".TH coffer 1"));
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("share/man1");
    assert_eq!(run(["coffer", "man", pages.to_str().unwrap()], "").code, 0);
    assert!(pages.join("coffer-fs-kms-set-vault.1").is_file());
}

#[test]
fn without_a_node_it_ends_with_7() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let missing = missing.to_str().unwrap();
    let ran = run(["coffer", "fs", "list", "--socket", missing], "");
    assert_eq!(ran.code, 7);
    assert_eq!(
        ran.stderr,
        format!(
            "error: no node answers at {missing}\n  why: there is no such socket\n  do:  start it with coffer \
             serve, or name its socket with --socket PATH or COFFER_SOCKET\n"
        )
    );

    let stale = directory.path().join("stale");
    drop(UnixListener::bind(&stale).unwrap());
    let ran = run(["coffer", "status", "--socket", stale.to_str().unwrap()], "");
    assert_eq!(ran.code, 7);
    assert!(ran.stderr.contains("nobody listens on it"), "{ran:?}");

    let long = format!("{}/{}", directory.path().display(), "x".repeat(120));
    let ran = run(["coffer", "status", "--socket", &long], "");
    assert_eq!(ran.code, 7);
    assert!(ran.stderr.contains("too long for a socket"), "{ran:?}");
}

#[test]
fn each_kind_of_problem_has_its_exit_code() {
    for (exit, status, code) in [
        ("failed", 500, 1),
        ("usage", 400, 2),
        ("kms-unreachable", 503, 3),
        ("kms-refused", 502, 4),
        ("state", 409, 5),
        ("not-authentic", 500, 6),
    ] {
        let answer = problem(status, exit, Some("what to do\nin two lines"));
        let node = Node::answering([("GET /v1/status", status, answer)]);
        let ran = node.run(&["status"]);
        assert_eq!(ran.code, code);
        assert_eq!(
            ran.stderr,
            "error: what failed\n  why: why\n  do:  what to do\n       in two lines\n"
        );
        assert_eq!(ran.stdout, "");
    }
}

#[test]
fn with_json_a_problem_is_json_on_stderr() {
    let node = Node::answering([("GET /v1/status", 409, problem(409, "state", None))]);
    let ran = node.run(&["status", "--json"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (5, ""));
    assert_eq!(serde_json::from_str::<Value>(&ran.stderr).unwrap(), problem(409, "state", None));
}

#[test]
fn an_answer_that_nobody_understands_is_no_panic() {
    let node = Node::answering([("GET /v1/status", 200, Value::from(7))]);
    let ran = node.run(&["status"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.starts_with("error: the node's answer is not understood\n"), "{ran:?}");
    // Not in the script: a 404 without a problem.
    assert_eq!(node.run(&["job", "list"]).code, 1);
}
