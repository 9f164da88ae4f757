//! A KMS that is away, sealed, slow, or something else; and what filesystems do meanwhile.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use coffer_tests::kms::{KEY, Kind, Kms, policy};
use coffer_tests::node::Place;
use dev_vault::{DevVault, Fault};
use serde_json::{Value, json};

#[test]
fn a_node_that_starts_without_its_kms_opens_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let start = |address| {
        let builder = DevVault::builder().state_file(folder.path().join("vault"));
        let builder = builder.root_token("root").transit_key(KEY).listen(address);
        runtime.block_on(builder.start()).unwrap()
    };
    let vault = start("127.0.0.1:0".parse().unwrap());
    let place = Place::new();
    let node = place.start();
    place.ok(&["fs", "kms", "set-vault", &vault.url(), KEY, "root"]);
    place.ok(&["fs", "create", "home"]);
    let address = vault.address();
    runtime.block_on(vault.stop());

    // Open filesystems go on.
    let source = place.path("source");
    testkit::tree::small_files(&source, 3).unwrap();
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    node.stop();

    let _node = place.start();
    let locked = place.wait_for_state("home", "locked");
    place.fails(5, &["fs", "ls", "home"]);
    let refused = place.fails(3, &["fs", "unlock", "home"]);
    assert!(refused.contains(&address.to_string()), "{refused}");
    assert!(!locked["problem"].is_null(), "{locked}");
    let _vault = start(address);
    place.wait_for_state("home", "unlocked");
    place.ok(&["fs", "ls", "home"]);
}

#[test]
fn status_asks_no_kms_and_does_not_wait_for_one() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let node = place.start();
    place.set_vault(&kms);
    node.stop();
    let url = kms.url().to_owned();
    drop(kms);
    // It takes connections, and says nothing.
    let _silent = TcpListener::bind(url.strip_prefix("http://").unwrap()).unwrap();
    let _node = place.start();
    let begun = Instant::now();
    let status = place.json(&["status"]);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let kms = &status["kms"]["configured"];
    assert_eq!((&kms["base_url"], &kms["credential_set"]), (&json!(url), &json!(true)), "{status}");
    assert_eq!(kms["problem"]["code"], "kms-not-asked", "{status}");
}

#[test]
fn sealed_has_its_own_words() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let _node = place.start();
    let token = kms.token();
    kms.admin().ask("PUT", "sys/seal", &json!({}));
    let refused = place.fails(3, &["fs", "kms", "set-vault", kms.url(), KEY, &token]);
    assert!(refused.contains("sealed") && refused.contains("unseal"), "{refused}");
}

#[test]
fn answers_that_no_vault_gives_are_refused_in_time() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let _node = place.start();
    let token = kms.token();
    for fault in [Fault::Html, Fault::Truncate, Fault::Endless, Fault::Drop] {
        let shown = format!("{fault:?}");
        kms.embedded().faults().inject(fault.on(""));
        let begun = Instant::now();
        let answer = place.coffer(&["fs", "kms", "set-vault", kms.url(), KEY, &token]);
        assert_eq!(answer.code, 3, "{shown}: {answer:?}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{shown} took {:?}", begun.elapsed());
        kms.embedded().faults().clear();
    }
    place.ok(&["fs", "kms", "set-vault", kms.url(), KEY, &token]);
}

#[test]
fn an_expired_token_is_told_apart() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let _node = place.start();
    let policy = coffer_tests::kms::policy(KEY);
    let short = json!({ "ttl": "1h", "explicit_max_ttl": "1h" });
    let token = kms.admin().token("short", &policy, &short);
    let answer = place.coffer(&["fs", "kms", "set-vault", kms.url(), KEY, &token]).expect(0);
    let warned = format!("{}{}", answer.stdout, answer.stderr);
    assert!(warned.contains("periodic"), "a token that ends is warned of: {warned}");
    place.ok(&["fs", "create", "home"]);
    kms.embedded().advance(Duration::from_secs(2 * 3600));
    let refused = place.fails(4, &["fs", "create", "second"]);
    assert!(refused.contains("token"), "{refused}");
    let shown = place.coffer(&["fs", "kms"]);
    assert!(format!("{}{}", shown.stdout, shown.stderr).contains("token"), "{shown:?}");
}

#[test]
fn a_key_that_can_be_lost_or_taken_is_warned_of() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let _node = place.start();
    let token = kms.token();
    kms.configure(&json!({ "allow_plaintext_backup": true }));
    place.set_vault(&kms);
    let live = place.json(&["fs", "kms"])["findings"].to_string();
    assert!(live.contains("key-backup-in-clear") && !live.contains("key-exportable"), "{live}");
    kms.configure(&json!({ "deletion_allowed": true, "exportable": true }));
    let answer =
        place.coffer(&["fs", "kms", "set-vault", kms.url(), KEY, &token, "--json"]).expect(0);
    for code in ["key-deletable", "key-exportable"] {
        assert!(answer.stdout.contains(code), "{answer:?}");
    }
}

#[test]
fn a_key_that_cannot_encrypt_is_refused() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let _node = place.start();
    kms.admin().write("transit/keys/signing", &json!({ "type": "ed25519" }));
    let root = kms.embedded().root_token().to_owned();
    let refused = place.fails(4, &["fs", "kms", "set-vault", kms.url(), "signing", &root]);
    assert!(refused.contains("ed25519"), "{refused}");
}

#[test]
fn a_rewrap_that_the_kms_refuses_ends_its_command_and_goes_on_when_it_is_granted() {
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let (kms, place) = (Kms::start(kind), Place::new());
        let _node = place.start();
        place.set_vault(&kms);
        place.ok(&["fs", "create", "home"]);
        kms.rotate();
        let grant = |lines: &str| {
            let policy = json!({ "policy": lines });
            kms.admin().write("sys/policies/acl/coffer-test", &policy);
        };
        let all = policy(KEY);
        let lacking: Vec<_> = all.lines().filter(|line| !line.contains("rewrap")).collect();
        grant(&lacking.join("\n"));
        let refused = place.fails(4, &["fs", "kms", "rewrap"]);
        assert!(refused.contains(&format!("transit/rewrap/{KEY}")), "{kind:?}: {refused}");
        assert!(refused.contains("do:"), "{refused}");
        let refused = place.coffer(&["fs", "kms", "rewrap", "--json"]).expect(4);
        let problem: Value = serde_json::from_str(&refused.stderr).unwrap();
        assert_eq!(problem["code"], "kms-denied", "{problem}");
        assert!(place.wait_for_finding("job-waits").to_string().contains("rewrap"));
        grant(&all);
        place.ok(&["fs", "kms", "rewrap"]);
        assert_eq!(place.json(&["fs", "show", "home"])["wrapped_by"]["version"], 2);
    }
}
