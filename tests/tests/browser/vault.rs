//! Once over the real newest Vault.

use std::fs;

use coffer_tests::kms::{KEY, Kind, Kms};
use coffer_tests::mtls::MutualTls;
use coffer_tests::node::Place;

use crate::console::Console;

#[test]
fn over_a_real_vault_a_kms_is_set_a_filesystem_made_the_key_rotated_and_all_is_well() {
    let (kms, place) = (Kms::start(Kind::Newest), Place::new());
    let _node = place.start();
    let console = Console::open(&place);
    console.type_kms(kms.url(), KEY, "hvs.wrong");
    console.press("Update");
    assert!(console.wrong("API token").contains("Vault refuses the token"));
    console.fill("API token", &kms.token());
    console.press("Update");
    console.sees("periodic: renewed for ever");

    console.press("Filesystems");
    console.press("Create filesystem");
    console.fill("Name", "home");
    console.press("Create");
    console.sees("home is made; its key is wrapped by coffer-key v1");

    kms.rotate();
    console.press("KMS Configuration");
    console.press("Rewrap keys");
    console.sees("1 key: 1 on version 2 of coffer-key");
    console.press("Check now");
    console.until("a checklist", || (console.count("#check .checklist li") > 5).then_some(()));
    assert_eq!(console.count("#check .mark.bad"), 0, "{}", console.text());
    console.press("Rehearse now");
    console.sees("a start now would succeed: 1 filesystem can be opened");
    console.page("/filesystems/home");
    console.sees("coffer-key v2");
}

#[test]
fn a_vault_that_asks_for_a_certificate_is_set_with_one_and_it_is_kept() {
    let place = Place::new();
    let vault = MutualTls::start(&place);
    let _node = place.start();
    let console = Console::open(&place);
    let ([certificate, key], [_, another]) = (vault.client(100), vault.client(100));
    console.type_kms(vault.server.url(), KEY, &vault.token());
    console.press("More");
    console.fill("CA certificate", &fs::read_to_string(&vault.ca).unwrap());
    console.fill("Certificate", &certificate);
    console.press("Update");
    let wrong = console.wrong("Private key");
    assert!(wrong.contains("belong together"), "{wrong}");
    console.fill("API token", &vault.token());
    console.fill("Private key", &another);
    console.press("Update");
    let wrong = console.wrong("Certificate");
    assert!(wrong.contains("is not that of the client certificate"), "{wrong}");
    assert_eq!(console.value("Certificate").trim(), certificate.trim(), "what was typed is kept");
    assert!(!console.source().contains("PRIVATE KEY"), "it is not sent back");
    console.fill("API token", &vault.token());
    console.fill("Private key", &key);
    console.press("Update");
    console.sees("the KMS is https://");

    // With another master key the token and the certificate go on.
    vault.server.admin().write("transit/keys/second", &serde_json::json!({}));
    console.press("Update KMS");
    console.fill("Key name", "second");
    console.press("Update");
    assert!(console.wrong("Key name").contains("second"), "the token may not use that");
    console.press("Cancel");
    console.page("/kms");
    console.press("Check now");
    console.until("a checklist", || (console.count("#check .checklist li") > 5).then_some(()));
    assert_eq!(console.count("#check .mark.bad"), 0, "{}", console.text());
    assert_eq!(place.json(&["fs", "kms"])["configured"]["client_cert"], true);
}
