//! Once over the real newest Vault.

use coffer_tests::kms::{KEY, Kind, Kms};
use coffer_tests::node::Place;

use crate::console::Console;

#[test]
fn over_a_real_vault_a_kms_is_set_a_filesystem_made_the_key_rotated_and_all_is_well() {
    let (kms, place) = (Kms::start(Kind::Newest), Place::new());
    let _node = place.start();
    let console = Console::open(&place);
    console.page("/kms");
    console.press("Configure KMS");
    console.fill("URL", kms.url());
    console.fill("Key name", KEY);
    console.fill("API token", "hvs.wrong");
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
