//! The KMS Configuration screen and its dialogs.

use std::time::Duration;

use coffer_tests::kms::{KEY, Kind, Kms, policy};
use coffer_tests::node::Place;
use dev_vault::Fault;
use serde_json::json;

use crate::console::Console;

#[test]
fn a_kms_is_configured_in_the_dialog_and_shown_without_its_token() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    let console = Console::open(&place);
    console.sees("not set");
    console.press("KMS Configuration");
    console.sees("KMS is not set.");
    assert!(!console.offers("Update KMS") && !console.offers("Reset KMS"));
    console.press("Configure KMS");
    assert_eq!(console.dialog().as_deref(), Some("Configure KMS"));
    console.press("Cancel");
    assert_eq!(console.dialog(), None);

    let token = kms.token();
    console.press("Configure KMS");
    console.fill("URL", kms.url());
    console.fill("Key name", KEY);
    console.fill("API token", &token);
    console.press("Update");
    console.sees(&format!("the KMS is {} with the master key {KEY}", kms.url()));
    console.sees("periodic: renewed for ever");
    assert_eq!(console.dialog(), None);
    assert!(console.offers("Update KMS") && console.offers("Reset KMS"));
    assert!(!console.offers("Configure KMS"));
    // The news are told once.
    console.reload();
    console.sees("newest version");
    assert!(!console.text().contains("the KMS is http"), "{}", console.text());
    let source = console.source();
    assert!(!source.contains(&token), "the page holds the token");
    assert_eq!(place.json(&["fs", "kms"])["configured"]["base_url"], kms.url());
}

#[test]
fn what_is_wrong_with_a_kms_stands_beside_its_field_and_what_was_typed_is_kept() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    let console = Console::open(&place);
    console.type_kms("http://127.0.0.1:9", KEY, "hvs.canary");
    console.press("Update");
    let wrong = console.wrong("URL");
    assert!(wrong.contains("127.0.0.1:9") && wrong.contains("Do:"), "{wrong}");
    assert_eq!(console.dialog().as_deref(), Some("Configure KMS"));
    assert_eq!(
        (console.value("URL"), console.value("Key name")),
        ("http://127.0.0.1:9".into(), KEY.into())
    );
    assert_eq!(console.value("API token"), "", "a token is not sent back");
    assert!(!console.source().contains("hvs.canary"));
    // It has the focus, and the page can be loaded again.
    assert_eq!(console.focused(), "URL");
    assert!(console.url().ends_with("/kms"));

    console.fill("URL", kms.url());
    console.fill("API token", "hvs.canary");
    console.press("Update");
    let wrong = console.wrong("API token");
    assert!(wrong.contains("Vault refuses the token"), "{wrong}");

    console.fill("Key name", "no-such-key");
    console.fill("API token", &kms.token_for(&policy("no-such-key")));
    console.press("Update");
    assert!(console.wrong("Key name").contains("no-such-key"));

    for url in ["vault.example", "ftp://vault.example", "http://user:secret@vault.example"] {
        console.fill("URL", url);
        console.fill("API token", "hvs.canary");
        console.press("Update");
        console.wrong("URL");
        assert_eq!(console.value("URL"), url);
    }
    // Plain http beyond this machine is asked for.
    console.fill("URL", "http://vault.example:8200");
    console.fill("API token", "hvs.canary");
    console.press("Update");
    assert!(console.wrong("URL").contains("http"));

    console.press("Cancel");
    console.press("Configure KMS");
    console.fill("URL", kms.url());
    console.fill("Key name", KEY);
    console.press("Update");
    assert!(console.wrong("API token").contains("token"));
    assert!(place.json(&["fs", "kms"])["configured"].is_null());
    console.fill("API token", &kms.token());
    console.press("Update");
    console.sees("Update KMS");
}

#[test]
fn a_sealed_kms_is_told_apart() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    let token = kms.token();
    kms.admin().ask("PUT", "sys/seal", &json!({}));
    let console = Console::open(&place);
    console.type_kms(kms.url(), KEY, &token);
    console.press("Update");
    let wrong = console.wrong("URL");
    assert!(wrong.contains("sealed") && wrong.contains("unseal"), "{wrong}");
}

#[test]
fn an_update_is_prefilled_and_keeps_the_token_for_the_same_origin_alone() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let other = Kms::start(Kind::Embedded);
    kms.admin().write("transit/keys/second", &json!({}));
    let _node = place.start();
    let console = Console::open(&place);
    let both = [policy(KEY), policy("second")].concat();
    console.set_kms(kms.url(), KEY, &kms.token_for(&both));

    console.press("Update KMS");
    assert_eq!(console.dialog().as_deref(), Some("Configure KMS"));
    assert_eq!((console.value("URL"), console.value("Key name")), (kms.url().into(), KEY.into()));
    assert_eq!(console.value("API token"), "");
    console.fill("Key name", "second");
    console.press("Update");
    console.sees("with the master key second");

    console.press("Update KMS");
    console.fill("URL", other.url());
    console.fill("Key name", KEY);
    console.press("Update");
    let wrong = console.wrong("API token");
    assert!(wrong.contains("token"), "{wrong}");
    assert_eq!(console.value("URL"), other.url());
    assert_eq!(place.json(&["fs", "kms"])["configured"]["base_url"], kms.url());
    // A token that was typed is not forgotten by a slip, with the stored one in its place.
    console.fill("URL", kms.url());
    console.fill("API token", "hvs.wrong");
    console.press("Update");
    console.wrong("API token");
    console.sees("Type it again");
    for _ in 0..2 {
        console.press("Update");
        let wrong = console.wrong("API token");
        assert!(wrong.contains("nothing was typed now"), "{wrong}");
    }
    // What was typed and refused is gone with the dialog.
    console.fill("URL", "https://elsewhere.example");
    console.fill("API token", "hvs.left");
    console.press("Cancel");
    console.until("the focus", || (console.focused() == "Update KMS").then_some(()));
    console.press("Update KMS");
    assert_eq!((console.value("URL"), console.value("API token")), (kms.url().into(), "".into()));
    assert_eq!(console.count("dialog[open] [role=alert]"), 0);
    console.fill("URL", other.url());
    console.fill("Key name", KEY);
    console.fill("API token", &other.token());
    console.press("Update");
    console.sees(&format!("the KMS is now {}", other.url()));
}

/// After a token that was refused an AppRole takes its place; and a KMS that takes its time is waited for.
#[test]
fn another_way_to_log_in_takes_the_place_of_a_refused_token() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    kms.admin().write("sys/auth/approle", &json!({ "type": "approle" }));
    kms.admin().ask("PUT", "sys/policies/acl/of-role", &json!({ "policy": policy(KEY) }));
    let role = json!({ "token_policies": "of-role", "token_period": "1h" });
    kms.admin().write("auth/approle/role/coffer", &role);
    let id = kms.admin().read("auth/approle/role/coffer/role-id")["data"]["role_id"].clone();
    let secret = kms.admin().write("auth/approle/role/coffer/secret-id", &json!({}));
    let [role_id, secret_id] =
        [&id, &secret["data"]["secret_id"]].map(|it| it.as_str().unwrap().to_owned());
    let console = Console::open(&place);
    console.type_kms(kms.url(), KEY, "hvs.wrong");
    console.press("Update");
    console.wrong("API token");
    console.press("More");
    console.fill("Role id", &role_id);
    console.fill("Secret id", &secret_id);
    let slow = Fault::Delay { milliseconds: 2000 };
    kms.embedded().faults().inject(slow.on("transit/encrypt/"));
    // While another page is waited for, WebDriver does not look at this one.
    console.script(
        "new MutationObserver(() => (sessionStorage.seen = document.body.innerText)).observe(document.body, { subtree: true, childList: true }); return null",
    );
    console.press("Update");
    console.sees("the KMS is http");
    let seen = console.script("return sessionStorage.seen");
    let waits = "Where a KMS or a disk takes its time, this does too.";
    assert!(seen.as_str().unwrap().contains(waits), "{seen}");
    kms.embedded().faults().clear();
    assert_eq!(place.json(&["fs", "kms"])["configured"]["auth_method"], "approle");
}

#[test]
fn a_kms_is_reset_after_a_question() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    let console = Console::open(&place);
    console.page("/kms");
    console.press("Reset KMS");
    assert_eq!(console.dialog().as_deref(), Some("KMS Reset"));
    console
        .sees(&format!("Remove the KMS configuration, {} with the master key {KEY}?", kms.url()));
    console.press("No");
    assert_eq!(console.dialog(), None);
    assert!(!place.json(&["fs", "kms"])["configured"].is_null());
    console.press("Reset KMS");
    console.press("Yes");
    console.sees("KMS is not set.");
    console.sees("the KMS is removed");
    assert!(place.json(&["fs", "kms"])["configured"].is_null());
}

#[test]
fn a_kms_that_filesystems_need_is_reset_by_a_downgrade_alone_whose_word_is_typed() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    let console = Console::open(&place);
    console.page("/kms");
    console.press("Reset KMS");
    console.sees("The KMS can't be removed: 1 encrypted filesystem need");
    assert!(!console.offers("Yes"));
    console.press("Downgrade to local wrapping");
    console.fill("Type downgrade to do it all the same", "yes");
    console.press("Downgrade");
    let wrong = console.wrong("Type downgrade to do it all the same");
    assert!(wrong.contains("another word was typed"), "{wrong}");
    assert!(!place.json(&["fs", "kms"])["configured"].is_null());
    console.fill("Type downgrade to do it all the same", "downgrade");
    console.press("Downgrade");
    console.sees("every key moves under local wrapping");
    console.sees("KMS is not set.");
    place.until("the key is wrapped locally", || {
        place.json(&["fs", "show", "home"])["wrapped_by"]["kind"] == "local"
    });
    console.page("/filesystems/home");
    console.sees("exposed");
}

/// The confirmation was right when it was shown; a filesystem was made meanwhile.
#[test]
fn a_reset_is_refused_where_a_filesystem_was_made_meanwhile() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    let console = Console::open(&place);
    console.page("/kms");
    console.press("Reset KMS");
    console.sees("Remove the KMS configuration");
    place.ok(&["fs", "create", "home"]);
    console.press("Yes");
    console.sees("1 encrypted filesystem(s) need it (home)");
    assert_eq!(console.dialog().as_deref(), Some("KMS Reset"));
    assert!(!place.json(&["fs", "kms"])["configured"].is_null());
}

#[test]
fn keys_are_rewrapped_with_live_progress() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    for name in ["a", "b", "c"] {
        place.ok(&["fs", "create", name]);
    }
    let console = Console::open(&place);
    console.page("/kms");
    console.sees("3 keys: 3 on version 1");
    kms.rotate();
    let slow = Fault::Delay { milliseconds: 3000 };
    kms.embedded().faults().inject(slow.on("transit/rewrap/"));
    console.press("Rewrap keys");
    console.sees("the rewrap has begun");
    assert!(
        console.script("return document.querySelector('progress') !== null").as_bool().unwrap()
    );
    console.marks();
    console.sees("3 keys: 3 on version 2");
    console.until("no progress bar", || {
        let bar = console.script("return document.querySelector('progress') !== null");
        (bar == false).then_some(())
    });
    assert!(console.is_marked(), "the page was loaded again");
    kms.embedded().faults().clear();
}

#[test]
fn a_check_and_a_rehearsal_are_shown_as_checklists() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    let console = Console::open(&place);
    console.page("/kms");
    console.press("Check now");
    console.until("a checklist", || (console.count("#check .checklist li") > 5).then_some(()));
    assert_eq!(console.count("#check .mark.bad"), 0, "{}", console.text());
    console.press("Rehearse now");
    console.sees("a start now would succeed: 1 filesystem can be opened");
    // What was found stays until it is found anew.
    console.reload();
    assert!(console.count("#check .checklist li") > 5);
    console.sees("a start now would succeed");

    // A token that may do less, and a KMS that is away.
    kms.embedded().faults().inject(Fault::Drop.on(""));
    console.press("Check now");
    console.until("a failure", || (console.count("#check .mark.bad") > 0).then_some(()));
    console.press("Rehearse now");
    console.sees("home would stay locked");
    kms.embedded().faults().clear();
}

#[test]
fn the_policy_is_there_to_be_copied() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    let console = Console::open(&place);
    let allow = json!({
        "origin": console.origin(), "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"],
    });
    console.devtools("Browser.grantPermissions", allow);
    console.page("/kms");
    console.press("Copy the policy");
    console.sees("Copied");
    let copied = console.slow_script("navigator.clipboard.readText().then(arguments[0])");
    let policy = place.ok(&["fs", "kms", "policy", KEY]);
    // The command's answer goes on with comments on how to apply it.
    assert!(policy.starts_with(copied.as_str().unwrap().trim()), "{copied}");
    // It says again what it does.
    console.sees("Copy the policy");
}

#[test]
fn what_would_fail_is_foretold() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    let console = Console::open(&place);
    console.page("/kms");
    console.choose("If", "the master key is deleted");
    console.press("Foretell");
    console.sees("can't be unlocked at a start");
    console.sees("1: home");
    console.choose("If", "min_decryption_version is raised");
    console.fill("To version", "2");
    console.press("Foretell");
    console.sees("is raised to 2");
    // What hangs on a master key of its own.
    kms.admin().write("transit/keys/own", &json!({}));
    place.ok(&[
        "fs",
        "kms",
        "set-vault",
        kms.url(),
        KEY,
        &kms.token_for(&[policy(KEY), policy("own")].concat()),
    ]);
    place.ok(&["fs", "create", "other", "--kms-key", "own"]);
    console.choose("If", "the master key is deleted");
    console.fill("Of the key", "own");
    console.press("Foretell");
    console.sees("the master key own is deleted");
    console.sees("1: other");
    assert_eq!(console.value("Of the key"), "own");
    console.choose("If", "min_decryption_version is raised");
    console.fill("To version", "two");
    console.press("Foretell");
    console.sees("Do:");
}

#[test]
fn a_kms_that_is_away_is_told_on_every_screen_that_shows_it() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    node.stop();
    let url = kms.url().to_owned();
    drop(kms);
    let _node = place.start();
    place.wait_for_state("home", "locked");
    let console = Console::open(&place);
    console.sees("1 filesystem locked");
    console.sees("does not answer");
    console.press("see which, and why");
    console.sees(&url);
    console.press("home");
    console.press("Unlock");
    console.sees("Do:");
    console.press("Back");
    console.sees("All filesystems");
    console.page("/kms");
    console.sees("KMS");
    console.press("Rewrap keys");
    std::thread::sleep(Duration::from_millis(200));
    console.page("/kms");
    console.sees(&url);
}
