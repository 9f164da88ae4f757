//! The ways in which the node shows Vault who it is, and that none of them ends unnoticed.

use std::fs;
use std::net::TcpListener;
use std::thread::sleep;
use std::time::{Duration, Instant};

use coffer_tests::kms::{KEY, Kind, Kms, policy};
use coffer_tests::node::{Node, Place};
use serde_json::{Value, json};

/// A master key that a filesystem has of its own.
const OWN: &str = "tenant-a";

/// An AppRole whose tokens live for 3 seconds, at most 4. Its role id and secret id.
fn app_role(kms: &Kms) -> (String, String) {
    let admin = kms.admin();
    admin.write("sys/auth/approle", &json!({ "type": "approle" }));
    let policy = policy(KEY) + &policy(OWN);
    admin.write("sys/policies/acl/coffer", &json!({ "policy": policy }));
    let settings = json!({
        "token_policies": "coffer", "token_ttl": "3s", "token_max_ttl": "4s",
        // As 1.1.5 calls them.
        "policies": "coffer",
    });
    admin.write("auth/approle/role/coffer", &settings);
    let id = admin.read("auth/approle/role/coffer/role-id")["data"]["role_id"].clone();
    let secret = admin.write("auth/approle/role/coffer/secret-id", &json!({}));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&id), text(&secret["data"]["secret_id"]))
}

#[test]
fn an_app_role_logs_in_again_and_again() {
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let (kms, place) = (Kms::start(kind), Place::new());
        let (role_id, secret_id) = app_role(&kms);
        let file = place.path("secret-id");
        fs::write(&file, &secret_id).unwrap();
        let file = file.to_str().unwrap();
        let node = place.start();
        let set = ["fs", "kms", "set-vault", kms.url(), KEY, "--role-id", &role_id];
        let wrong = place.path("wrong");
        fs::write(&wrong, "canary-of-another-secret-id").unwrap();
        let by_wrong = [&set[..], &["--secret-id-file", wrong.to_str().unwrap()]].concat();
        let refused = place.fails(4, &by_wrong);
        assert!(refused.contains("secret id is wrong"), "{kind:?}: {refused}");
        let answered = place.ok(&[&set[..], &["--secret-id-file", file]].concat());
        assert!(!answered.contains("warning"), "{kind:?}: {answered}");
        place.ok(&["fs", "create", "home"]);
        kms.admin().write(&format!("transit/keys/{OWN}"), &json!({}));
        place.ok(&["fs", "create", "a", "--kms-key", OWN]);
        // Longer than any of its tokens lives.
        sleep(Duration::from_secs(6));
        kms.rotate();
        place.ok(&["fs", "kms", "rewrap"]);
        let shown = place.json(&["fs", "kms"]);
        assert_eq!(shown["configured"]["auth_method"], "approle", "{kind:?}: {shown}");
        assert_eq!(shown["configured"]["role_id"], role_id.as_str());
        assert_eq!(shown["configured"]["problem"], Value::Null, "{kind:?}: {shown}");
        node.stop();
        let node = place.start();
        place.wait_for_state("home", "unlocked");
        place.wait_for_state("a", "unlocked");

        // A role that is gone is told of, with what to do, before anything fails.
        kms.admin().delete("auth/approle/role/coffer");
        sleep(Duration::from_secs(5));
        let shown = place.ok(&["fs", "kms"]);
        assert!(shown.contains("secret id is wrong") && shown.contains("set-vault"), "{shown}");
        node.stop();
        let said = place.log();
        assert!(!said.contains(&secret_id) && !said.contains("canary-of"), "{said}");
    }
}

#[test]
fn a_periodic_token_is_renewed_in_time_and_one_that_ended_is_replaced() {
    let place = |kms: Kms| {
        let place = Place::new();
        let settings = json!({ "period": "6s", "no_parent": true });
        let token = kms.admin().token("coffer-test", &policy(KEY), &settings);
        let node = place.start();
        place.ok(&["fs", "kms", "set-vault", kms.url(), KEY, &token]);
        place.ok(&["fs", "create", "home"]);
        node.stop();
        (kms, place)
    };
    let places = [Kind::Embedded, Kind::Oldest, Kind::Newest].map(|kind| place(Kms::start(kind)));
    let nodes: Vec<_> = places.iter().map(|(_, place)| place.start()).collect();
    sleep(Duration::from_secs(15));
    for (_, place) in &places {
        place.ok(&["fs", "create", "while-it-is-renewed"]);
    }
    nodes.into_iter().for_each(Node::stop);

    // While nobody asks for a renewal the period ends, and Vault revokes it.
    sleep(Duration::from_secs(8));
    for (kms, place) in &places {
        let _node = place.start();
        let locked = place.wait_for_problem("home", "kms-denied");
        assert!(locked["problem"]["cure"].to_string().contains("set-vault"), "{locked}");
        place.set_vault(kms);
        place.wait_for_state("home", "unlocked");
    }
}

#[test]
fn a_watched_token_file_is_read_when_it_changes() {
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let (kms, place) = (Kms::start(kind), Place::new());
        let (file, new) = (place.path("sink"), place.path("sink.new"));
        // As an agent writes it.
        let write = |token: &str| {
            fs::write(&new, token).unwrap();
            fs::rename(&new, &file).unwrap();
        };
        let token = || {
            let settings = json!({ "ttl": "1h", "renewable": false });
            kms.admin().token("coffer-test", &policy(KEY), &settings)
        };
        let first = token();
        let node = place.start();
        let path = file.to_str().unwrap();
        let set = ["fs", "kms", "set-vault", kms.url(), KEY, "--token-file", path];
        let set = [&set[..], &["--watch-token-file"]].concat();
        let missing = place.fails(1, &set);
        assert!(missing.contains(path), "{missing}");
        write(&first);
        let answered = place.ok(&set);
        assert!(!answered.contains("warning"), "who writes the file sees to it: {answered}");
        place.ok(&["fs", "create", "home"]);
        assert!(place.ok(&["fs", "kms"]).contains(path));
        node.stop();
        // The store has the file's name, and no token.
        for entry in fs::read_dir(place.state().join("store")).unwrap() {
            let path = entry.unwrap().path();
            let bytes = if path.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            let found = bytes.windows(first.len()).any(|part| part == first.as_bytes());
            assert!(!found, "the token lies in {}", path.display());
        }

        kms.admin().write("auth/token/revoke", &json!({ "token": first }));
        fs::remove_file(&file).unwrap();
        let node = place.start();
        let locked = place.wait_for_state("home", "locked");
        let begun = Instant::now();
        write(&token());
        place.wait_for_state("home", "unlocked");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}: {locked}", begun.elapsed());
        node.stop();

        // One that Vault refuses is tried no more for a while; another one at once.
        let revoked = fs::read_to_string(&file).unwrap();
        kms.admin().write("auth/token/revoke", &json!({ "token": revoked }));
        let _node = place.start();
        let locked = place.wait_for_problem("home", "kms-denied");
        let begun = Instant::now();
        write(&token());
        place.wait_for_state("home", "unlocked");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}: {locked}", begun.elapsed());
    }
}

/// A credential that can't go on for ever.
struct Ending {
    /// What the warning is called.
    code: &'static str,
    /// The settings of its token.
    token: Value,
    /// What its policies have beside the usual.
    also: &'static str,
}

#[test]
fn a_token_that_ends_is_warned_of_everywhere_from_the_first_moment() {
    let look_up = "path \"auth/token/lookup-self\" { capabilities = [\"read\"] }";
    let ending = |code, token| Ending { code, token, also: "" };
    let may_not_renew = json!({ "ttl": "1h", "no_default_policy": true });
    let periodic_may_not_renew = json!({ "period": "1h", "no_default_policy": true });
    let endings = [
        ending("token-not-renewable", json!({ "ttl": "1h", "renewable": false })),
        ending("token-not-periodic", json!({ "ttl": "1h" })),
        ending("token-not-periodic", json!({ "ttl": "1h", "explicit_max_ttl": "1h" })),
        ending("token-uses-limited", json!({ "period": "1h", "num_uses": 500 })),
        Ending { also: look_up, ..ending("token-may-not-renew", may_not_renew) },
        Ending { also: look_up, ..ending("token-may-not-renew", periodic_may_not_renew) },
    ];
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let (kms, place) = (Kms::start(kind), Place::new());
        let _node = place.start();
        for Ending { code, token, also } in &endings {
            let policy = policy(KEY) + also;
            let token = kms.admin().token("coffer-test", &policy, token);
            let (begun, logged) = (warnings(&place, "begun", code), place.log().len());
            place.ok(&["fs", "kms", "set-vault", kms.url(), KEY, &token]);
            until_warned(&place, code, begun, logged);
            // Nothing else says that it goes on.
            assert!(!place.ok(&["fs", "kms"]).contains("renewed for ever") || also.is_empty());
            if *code == "token-uses-limited" {
                place.fails(5, &["fs", "kms", "rehearse"]);
            } else {
                let rehearsed = place.json(&["fs", "kms", "rehearse"]);
                assert_eq!(rehearsed["until"]["what"], "the token", "{kind:?}: {rehearsed}");
                assert!(rehearsed["credential_seconds_left"].is_u64(), "{rehearsed}");
                assert_ne!(rehearsed["warnings"], json!([]), "{rehearsed}");
            }
            let ended = warnings(&place, "done", code);
            place.set_vault(&kms);
            place.until("the warning ends", || warnings(&place, "done", code) > ended);
            let status = place.json(&["status"]);
            assert!(!status["kms"]["findings"].to_string().contains(code), "{kind:?}: {status}");
        }
    }
}

#[test]
fn a_token_file_that_is_gone_is_warned_of_everywhere() {
    let (kms, place) = (Kms::start(Kind::Newest), Place::new());
    let file = place.path("sink");
    fs::write(&file, kms.token()).unwrap();
    let _node = place.start();
    let set = ["fs", "kms", "set-vault", kms.url(), KEY, "--watch-token-file", "--token-file"];
    place.ok(&[&set[..], &[file.to_str().unwrap()]].concat());
    fs::remove_file(&file).unwrap();
    // The node notices it by itself, long before it looks at Vault again.
    until_warned(&place, "token-file-unreadable", 0, 0);
    place.ok(&["fs", "create", "home"]);
    // What is missing on this machine is neither a KMS that is away nor one that refuses.
    let rehearsed = place.coffer(&["fs", "kms", "rehearse"]).expect(1);
    let (path, said) = (file.to_str().unwrap(), rehearsed.stderr);
    for part in ["no token can be read from", path, "look at the agent that writes the file"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    fs::write(&file, kms.token()).unwrap();
    place.until("the warning ends", || warnings(&place, "done", "token-file-unreadable") > 0);
    place.ok(&["fs", "kms", "rehearse"]);
}

/// Until its time is near, its tokens are renewed without the secret id.
#[test]
fn a_secret_id_that_is_gone_is_warned_of_everywhere_before_the_last_token_ends() {
    let (kms, place) = (Kms::start(Kind::Newest), Place::new());
    let (role_id, secret_id) = app_role(&kms);
    let longer = json!({ "token_ttl": "30s", "token_max_ttl": "30s" });
    kms.admin().write("auth/approle/role/coffer", &longer);
    let file = place.path("secret-id");
    fs::write(&file, &secret_id).unwrap();
    let _node = place.start();
    let set = ["fs", "kms", "set-vault", kms.url(), KEY, "--role-id", &role_id];
    place.ok(&[&set[..], &["--secret-id-file", file.to_str().unwrap()]].concat());
    let gone = json!({ "secret_id": secret_id });
    kms.admin().write("auth/approle/role/coffer/secret-id/destroy", &gone);
    until_warned(&place, "token-not-renewed", 0, 0);
}

/// Where the token of a login may ask Vault for it: from `set-vault` on, also by a node that has just started.
#[test]
fn a_secret_id_that_ends_is_warned_of_everywhere_from_the_first_moment() {
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let (kms, place) = (Kms::start(kind), Place::new());
        let (role_id, _) = app_role(&kms);
        let look_up =
            "path \"auth/approle/role/coffer/secret-id/lookup\" { capabilities = [\"update\"] }";
        let policy = policy(KEY) + look_up;
        kms.admin().write("sys/policies/acl/coffer", &json!({ "policy": policy }));
        let ends = json!({ "secret_id_ttl": "1h", "secret_id_num_uses": 40 });
        kms.admin().write("auth/approle/role/coffer", &ends);
        let secret = kms.admin().write("auth/approle/role/coffer/secret-id", &json!({}));
        let secret_id = secret["data"]["secret_id"].as_str().unwrap();
        let file = place.path("secret-id");
        fs::write(&file, secret_id).unwrap();
        let node = place.start();
        let set = ["fs", "kms", "set-vault", kms.url(), KEY, "--role-id", &role_id];
        let answered =
            place.ok(&[&set[..], &["--secret-id-file", file.to_str().unwrap()]].concat());
        assert!(answered.contains("was good for 39 more logins"), "{kind:?}: {answered}");
        until_warned(&place, "secret-id-expires", 0, 0);
        let told = || {
            let status = place.json(&["status"]);
            let findings = status["kms"]["findings"].as_array().unwrap().clone();
            let of = |code: &str| findings.iter().find(|f| f["code"] == code).cloned();
            of("secret-id-expires").zip(of("secret-id-uses-limited"))
        };
        // Each login takes one; and the renewal of a token lengthens no secret id's life.
        place.until("further logins are told", || {
            let Some((expires, uses)) = told() else { return false };
            let (expires, uses) = (expires["what"].to_string(), uses["what"].to_string());
            let told = ["59", "60"].map(|minutes| format!("it ends in {minutes} minutes"));
            assert!(told.iter().any(|told| expires.contains(told)), "{kind:?}: {expires}");
            !uses.contains(" 39 more") && !uses.contains(" 38 more")
        });
        assert_eq!(warnings(&place, "begun", "secret-id-uses-limited"), 1);
        node.stop();
        let node = place.start();
        place.until("it is told after a start", || told().is_some());
        let until = place.json(&["fs", "kms", "rehearse"])["until"].clone();
        assert_eq!(until["what"], "the secret id", "{kind:?}");
        assert!((3_000..=3_600).contains(&until["seconds_left"].as_u64().unwrap()), "{until}");
        node.stop();
        let said = place.log();
        assert!(!said.contains(secret_id), "{said}");
    }
}

/// A secret id that is good for a number of logins lasts as long with master keys that filesystems have of their own as without.
#[test]
fn master_keys_of_their_own_take_no_login_beside() {
    let own = ["tenant-a", "tenant-b", "tenant-c"];
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let (kms, place) = (Kms::start(kind), Place::new());
        let (role_id, _) = app_role(&kms);
        let admin = kms.admin();
        let policies: String = [KEY].iter().chain(&own).map(|key| policy(key)).collect();
        admin.write("sys/policies/acl/coffer", &json!({ "policy": policies }));
        let lasting = json!({ "secret_id_num_uses": 40, "token_ttl": "1h", "token_max_ttl": "2h" });
        admin.write("auth/approle/role/coffer", &lasting);
        let secret = admin.write("auth/approle/role/coffer/secret-id", &json!({}));
        let secret = secret["data"]["secret_id"].clone();
        let left = || {
            let asked = json!({ "secret_id": secret });
            let told = kms.admin().write("auth/approle/role/coffer/secret-id/lookup", &asked);
            told["data"]["secret_id_num_uses"].as_u64().unwrap()
        };
        let file = place.path("secret-id");
        fs::write(&file, secret.as_str().unwrap()).unwrap();
        let set = ["fs", "kms", "set-vault", kms.url(), KEY, "--role-id", &role_id];
        let set = [&set[..], &["--secret-id-file", file.to_str().unwrap()]].concat();
        let node = place.start();
        place.ok(&set);
        assert_eq!(left(), 39, "{kind:?}");
        for key in own {
            admin.write(&format!("transit/keys/{key}"), &json!({}));
            place.ok(&["fs", "create", key, "--kms-key", key]);
        }
        node.stop();
        let took = |logins: std::ops::RangeInclusive<u64>, what: &str, act: &dyn Fn()| {
            let before = left();
            act();
            let took = before - left();
            assert!(logins.contains(&took), "{kind:?}: {what} took {took}");
        };
        let node = std::cell::OnceCell::new();
        took(1..=1, "a start", &|| {
            assert!(node.set(place.start()).is_ok());
            own.iter().for_each(|name| drop(place.wait_for_state(name, "unlocked")));
        });
        // None where the start's is young enough.
        took(0..=1, "set-vault", &|| drop(place.ok(&set)));
        took(0..=1, "a check", &|| drop(place.ok(&["fs", "kms", "check"])));
        took(1..=1, "a rehearsal", &|| drop(place.ok(&["fs", "kms", "rehearse"])));
    }
}

/// The next start needs it. And what logins got does not stay in Vault when nobody uses it any more.
#[test]
fn neither_a_rehearsal_nor_a_check_takes_the_last_login() {
    const LOOK_UP: &str = "auth/approle/role/coffer/secret-id/lookup";
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let (kms, place) = (Kms::start(kind), Place::new());
        let (role_id, _) = app_role(&kms);
        let admin = kms.admin();
        let look_up = format!("path \"{LOOK_UP}\" {{ capabilities = [\"update\"] }}");
        admin.write("sys/policies/acl/coffer", &json!({ "policy": policy(KEY) + &look_up }));
        let few = json!({ "secret_id_num_uses": 3, "token_ttl": "1h", "token_max_ttl": "2h" });
        admin.write("auth/approle/role/coffer", &few);
        let secret = admin.write("auth/approle/role/coffer/secret-id", &json!({}));
        let secret = secret["data"]["secret_id"].clone();
        let left = || {
            let told = kms.admin().write(LOOK_UP, &json!({ "secret_id": secret }));
            told["data"]["secret_id_num_uses"].as_u64().unwrap()
        };
        let tokens = || {
            let (_, told) = kms.admin().ask("LIST", "auth/token/accessors", &json!({}));
            told["data"]["keys"].as_array().map(Vec::len)
        };
        let before = tokens();
        let file = place.path("secret-id");
        fs::write(&file, secret.as_str().unwrap()).unwrap();
        let set = ["fs", "kms", "set-vault", kms.url(), KEY, "--role-id", &role_id];
        let node = place.start();
        place.ok(&[&set[..], &["--secret-id-file", file.to_str().unwrap()]].concat());
        place.ok(&["fs", "create", "home"]);
        assert_eq!(left(), 2, "{kind:?}");

        let rehearsed = place.json(&["fs", "kms", "rehearse"]);
        assert_eq!((&rehearsed["starts_left"], left()), (&json!(1), 1), "{kind:?}: {rehearsed}");
        place.until("the node knows that one is left", || {
            place.ok(&["fs", "kms"]).contains("good for 1 more login ")
        });
        let refused = place.fails(5, &["fs", "kms", "rehearse"]);
        assert!(refused.contains("the next start would be refused"), "{kind:?}: {refused}");
        let checked = place.ok(&["fs", "kms", "check"]);
        assert!(checked.contains("it would take the last login"), "{kind:?}: {checked}");
        assert_eq!(left(), 1, "{kind:?}");

        node.stop();
        assert_eq!(tokens(), before, "{kind:?}");
        let node = place.start();
        place.wait_for_state("home", "unlocked");
        place.until("it is told that it was the last", || {
            place.ok(&["status"]).contains("Vault knows the secret id no more")
        });
        let refused = place.fails(4, &["fs", "kms", "rehearse"]);
        assert!(refused.contains("Vault knows the secret id no more"), "{kind:?}: {refused}");
        let told = place.ok(&["fs", "kms"]);
        assert!(told.contains(", then no login is granted"), "{kind:?}: {told}");
        node.stop();
        assert_eq!(tokens(), before, "{kind:?}");
    }
}

/// Waits until this warning stands in each place where an administrator looks, with the time left.
fn until_warned(place: &Place, code: &str, begun: usize, logged: usize) {
    let metric = format!("coffer_findings{{code=\"{code}\"}} 1");
    place.until(code, || {
        warnings(place, "begun", code) > begun && place.metrics().contains(&metric)
    });
    for command in [&["status"][..], &["fs", "kms"]] {
        let answer = place.json(command);
        let kms = answer.get("kms").unwrap_or(&answer);
        let mut findings = kms["findings"].as_array().unwrap().iter();
        let finding = findings.find(|finding| finding["code"] == code);
        let finding = finding.unwrap_or_else(|| panic!("no {code} in {answer}"));
        let what = finding["what"].as_str().unwrap();
        assert!(what.contains("ends in ") || what.contains("or in "), "{what}");
        assert!(!finding["cure"].as_str().unwrap().is_empty(), "{finding}");
        let text = place.ok(command);
        assert!(text.contains("warning"), "{text}");
        assert!(kms["configured"]["credential"]["seconds_left"].is_u64(), "{answer}");
    }
    assert!(place.metrics().contains("coffer_token_seconds_left "));
    let told = place.json(&["audit", "show", "--action", "kms.warning"]);
    let lines = told["lines"].as_array().unwrap();
    let begun = lines.iter().rfind(|line| line["detail"].as_str().unwrap().starts_with(code));
    let detail = begun.unwrap()["detail"].as_str().unwrap();
    assert!(detail.contains("ends in ") || detail.contains("or in "), "{detail}");
    let log = place.log();
    assert!(log[logged..].contains(&format!("code=\"{code}\"")), "{log}");
}

/// How often the audit log has this of a warning.
fn warnings(place: &Place, outcome: &str, code: &str) -> usize {
    let told = place.json(&["audit", "show", "--action", "kms.warning", "--lines", "1000"]);
    let of_code = |line: &&Value| {
        line["outcome"] == outcome && line["detail"].as_str().unwrap().starts_with(code)
    };
    told["lines"].as_array().unwrap().iter().filter(of_code).count()
}

#[test]
fn a_role_that_vault_has_locked_out_is_told_from_a_wrong_secret_id() {
    let (kms, place) = (Kms::start(Kind::Newest), Place::new());
    let (role_id, secret_id) = app_role(&kms);
    let file = |name: &str, text: &str| {
        fs::write(place.path(name), text).unwrap();
        place.path(name).to_str().unwrap().to_owned()
    };
    let _node = place.start();
    let set = |file| {
        ["fs", "kms", "set-vault", kms.url(), KEY, "--role-id", &role_id, "--secret-id-file", file]
    };
    let (wrong, right) = (file("wrong", "of-another"), file("right", &secret_id));
    for _ in 0..6 {
        let refused = place.fails(4, &set(&wrong));
        assert!(refused.contains("secret id is wrong"), "{refused}");
    }
    let refused = place.fails(4, &set(&right));
    assert!(refused.contains("locked the role out") && refused.contains("sys/locked-users/"));
}

#[test]
fn a_stored_token_is_kept_at_its_origin_and_sent_to_no_other_one() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    kms.admin().write(&format!("transit/keys/{OWN}"), &json!({}));
    let both = policy(KEY) + &policy(OWN);
    let settings = json!({ "period": "24h", "no_parent": true });
    let token = kms.admin().token("coffer-test", &both, &settings);
    let _node = place.start();
    let refused = place.fails(2, &["fs", "kms", "set-vault", kms.url(), KEY]);
    assert!(refused.contains("no KMS is set") && refused.contains("--token-file"), "{refused}");
    place.ok(&["fs", "kms", "set-vault", kms.url(), KEY, &token]);
    place.ok(&["fs", "create", "home"]);

    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let other_port = format!("http://{}", elsewhere.local_addr().unwrap());
    let other_host = kms.url().replace("127.0.0.1", "localhost");
    let other_scheme = kms.url().replace("http:", "https:");
    for url in [other_port, other_host, other_scheme] {
        assert_ne!(url, kms.url());
        let refused = place.fails(2, &["fs", "kms", "set-vault", &url, KEY]);
        let told = refused.contains("sent only to the origin") && refused.contains("--token-file");
        assert!(told, "{url}: {refused}");
    }
    assert_eq!(elsewhere.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);

    let moved = place.ok(&["fs", "kms", "set-vault", &format!("{}/", kms.url()), OWN]);
    assert!(!moved.contains(&token), "{moved}");
    let shown = place.json(&["fs", "kms"]);
    assert_eq!(shown["configured"]["master_key"], OWN, "{shown}");
    assert_eq!(shown["configured"]["problem"], Value::Null, "{shown}");
}
