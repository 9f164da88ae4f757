//! Input that is wrong gets a clear error, the exit code for wrong usage, and changes nothing.

use std::process::{Command, Stdio};

use coffer_tests::kms::KEY;
use coffer_tests::node::{Answer, Place, program};

#[test]
fn urls() {
    let place = Place::new();
    let _node = place.start();
    for url in [
        "nonsense",
        "",
        "ftp://127.0.0.1",
        "file:///etc/passwd",
        "http://user:pass@127.0.0.1:8200",
        "http:user:pass@127.0.0.1:8200",
        "http:/user:pass@127.0.0.1:8200",
        "http:////user:pass@127.0.0.1:8200",
        "http://user:pass@127.0.0.1:99999",
        "https://user:pass@",
        "//user:pass@127.0.0.1",
        "user:pass@127.0.0.1",
        "https://vault.example.com/?a=b",
        "https://vault.example.com/#f",
        "http://vault.example.com",
        "https://169.254.169.254",
        "http://169.254.169.254/latest",
        "https://[fe80::1]:8200",
        "https://[::ffff:169.254.169.254]",
        "http://0.0.0.0:8200",
    ] {
        let answer = place.coffer(&["fs", "kms", "set-vault", url, KEY, "t"]);
        assert!(wrong_usage(&answer), "{url}: {answer:?}");
        assert!(!answer.stderr.contains("pass@"), "{answer:?}");
    }
    assert!(!place.log().contains("pass@"), "{}", place.log());
    assert!(place.json(&["fs", "kms"])["configured"].is_null());
}

#[test]
fn names() {
    let place = Place::new();
    let _node = place.start();
    let long = "x".repeat(300);
    for name in ["a/b", "..", ".", "a\u{7}b", "a\nb", "-", "ä", "", &long] {
        for args in [
            vec!["fs", "create", "--allow-no-kms", "--", name],
            vec!["fs", "show", "--", name],
            vec!["fs", "delete", "--yes", "--", name],
        ] {
            let answer = place.coffer(&args);
            assert!(wrong_usage(&answer), "{answer:?}");
            assert!(!answer.stderr.contains('\u{7}'), "{answer:?}");
        }
        let key = place.coffer(&["fs", "kms", "set-vault", "http://127.0.0.1:1", name, "t"]);
        assert!(name == "ä" || wrong_usage(&key), "{key:?}");
    }
    assert_eq!(place.json(&["fs", "list"])["filesystems"], serde_json::json!([]));
}

#[test]
fn what_is_not_there() {
    let place = Place::new();
    let _node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    for args in [
        &["fs", "show", "nobody"][..],
        &["fs", "delete", "nobody"],
        &["fs", "unlock", "nobody"],
        &["fs", "lock", "nobody"],
        &["fs", "ls", "nobody"],
        &["fs", "export", "nobody", "/tmp/none"],
        &["fs", "verify", "nobody"],
        &["fs", "create", "_x"],
        &["fs", "create", "home", "--allow-no-kms"],
        &["fs", "create", "other", "--allow-no-kms", "--backing", "/dev/null/x"],
        &["fs", "import", "nobody", "/tmp"],
        &["fs", "import", "home", "/no/such/dir"],
        &["fs", "ls", "home", "/no/such/dir"],
        &["job", "show", "6f1c2d3e-0a1b-4c5d-8e9f-001122334455"],
        &["job", "show", "x"],
        &["job", "stop", "6f1c2d3e-0a1b-4c5d-8e9f-001122334455"],
        &["fs", "import", "home", ""],
    ] {
        for json in [false, true] {
            let args = [args, if json { &["--json"] } else { &[] }].concat();
            let answer = place.coffer(&args);
            assert!(answer.code != 0 && answer.says_what_to_do(), "{answer:?}");
            assert!(json || answer.stderr.starts_with("error: "), "{answer:?}");
        }
    }
    assert!(place.fails(5, &["fs", "show", "hom"]).contains("coffer fs list"));
    assert!(place.fails(2, &["job", "show", "x"]).contains("coffer job list"));
    place.fails(5, &["fs", "create", "home", "--allow-no-kms"]);
    place.fails(5, &["fs", "kms", "rewrap"]);
}

#[test]
fn no_node_answers() {
    let place = Place::new();
    let refused = place.fails(7, &["status"]);
    assert!(refused.contains("coffer serve"), "{refused}");
}

/// clap's own refusal and the node's both end with 2 and say what to do.
fn wrong_usage(answer: &Answer) -> bool {
    answer.code == 2 && answer.stderr.contains("error: ") && answer.says_what_to_do()
}

#[test]
fn the_development_kms_is_for_this_machine() {
    let place = Place::new();
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let refused = place.fails(2, &["dev", "vault", "--listen", listen]);
        assert!(refused.contains("--allow-remote"), "{refused}");
    }
}

#[test]
fn the_development_kms_tells_programs_too_how_to_use_it() {
    let mut vault = Command::new(program())
        .args(["dev", "vault", "--listen", "127.0.0.1:0", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let told = serde_json::Deserializer::from_reader(vault.stdout.take().unwrap());
    let told: serde_json::Value = told.into_iter().next().unwrap().unwrap();
    let text = |name: &str| told[name].as_str().unwrap().to_owned();
    let place = Place::new();
    let _node = place.start();
    let (url, key, token) = (text("url"), text("master_key"), text("root_token"));
    let set = place.coffer(&["fs", "kms", "set-vault", &url, &key, &token]);
    vault.kill().unwrap();
    vault.wait().unwrap();
    set.expect(0);
}
