//! The keyboard alone.

use coffer_tests::kms::{KEY, Kind, Kms};
use coffer_tests::node::Place;
use thirtyfour::Key;

use crate::console::Console;

/// Presses Tab until the focus is on what is called so.
fn tab_to(console: &Console, name: &str) {
    for _ in 0..60 {
        if console.focused() == name {
            return;
        }
        console.keys(Key::Tab);
    }
    panic!("Tab does not lead to {name}");
}

#[test]
fn a_kms_is_set_with_tab_enter_and_escape_alone() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    let console = Console::open(&place);
    console.keys(Key::Tab);
    assert_eq!(console.focused(), "Skip to the content");
    tab_to(&console, "KMS Configuration");
    console.enter();
    console.sees("KMS is not set.");
    tab_to(&console, "Configure KMS");
    console.enter();
    assert_eq!(console.dialog().as_deref(), Some("Configure KMS"));
    console.keys(Key::Escape);
    assert_eq!(console.dialog(), None);
    assert_eq!(console.focused(), "Configure KMS", "the focus returns to what opened the dialog");

    console.enter();
    // The first input has the focus.
    assert_eq!(console.focused(), "URL");
    console.keys(kms.url());
    tab_to(&console, "Key name");
    console.keys(KEY);
    tab_to(&console, "API token");
    console.keys("hvs.wrong");
    console.enter();
    console.sees("Vault refuses the token");
    assert!(console.wrong("API token").contains("Vault refuses the token"));
    assert_eq!(console.focused(), "API token", "what is wrong has the focus");
    console.keys(kms.token());
    tab_to(&console, "Update");
    console.enter();
    console.sees(&format!("the KMS is {}", kms.url()));
    assert!(!place.json(&["fs", "kms"])["configured"].is_null());

    // A dialog keeps the focus to itself.
    tab_to(&console, "Reset KMS");
    console.enter();
    assert_eq!(console.dialog().as_deref(), Some("KMS Reset"));
    for _ in 0..8 {
        console.keys(Key::Tab);
        let inside = console.script(
            "return document.activeElement === document.body || document.activeElement.closest('dialog') !== null",
        );
        assert!(inside == true, "{}", console.focused());
    }
    tab_to(&console, "No");
    console.enter();
    assert_eq!(console.dialog(), None);
    assert_eq!(console.focused(), "Reset KMS");
}
