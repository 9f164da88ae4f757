//! The audit log: searched, filtered, and its chain.

use std::fs;

use coffer_tests::node::Place;

use crate::console::Console;

#[test]
fn the_log_is_searched_filtered_and_turned_over() {
    let place = Place::new();
    let _node = place.start();
    for name in ["home", "projects"] {
        place.ok(&["fs", "create", name, "--allow-no-kms"]);
    }
    place.coffer(&["fs", "delete", "none", "--yes"]);
    let console = Console::open(&place);
    console.press("Audit");
    console.sees("console.session");
    console.fill("About", "projects");
    console.press("Search");
    console.until("its lines alone", || {
        let (all, of_it) = (console.count("tbody tr"), about(&console, "projects"));
        (all > 0 && all == of_it).then_some(())
    });
    assert_eq!(console.value("About"), "projects");
    console.fill("About", "");
    console.fill("Action", "console.session");
    console.press("Search");
    console.until("one line", || (console.count("tbody tr") == 1).then_some(()));
    console.fill("Action", "no-such-action");
    console.press("Search");
    console.sees("No line fits.");

    // A refused login is one.
    console.script(
        "return fetch('/login', {method: 'POST', body: new URLSearchParams({code: 'guess'})}).then((it) => it.status)",
    );
    console.page("/audit");
    console.tick("Only what was refused or failed");
    console.press("Search");
    console.sees("refused");
    assert_eq!(console.count("tbody .mark.good"), 0);

    for _ in 0..60 {
        place.ok(&["fs", "lock", "home"]);
        place.ok(&["fs", "unlock", "home"]);
    }
    console.page("/audit");
    assert_eq!(console.count("tbody tr"), 100);
    // What is done meanwhile comes by itself.
    console.marks();
    place.ok(&["fs", "create", "meanwhile", "--allow-no-kms"]);
    console.sees("meanwhile");
    assert!(console.is_marked(), "it was loaded again");
    let first = |console: &Console| {
        console
            .script("return document.querySelector('tbody th').textContent * 1")
            .as_u64()
            .unwrap()
    };
    // The next page begins where this one ends, also after it was renewed.
    let ends = "return [document.querySelector('tbody tr:last-child th').textContent, document.querySelector('[name=before]').value]";
    let ends = console.script(ends);
    assert_eq!(ends[0], ends[1]);
    let newest = first(&console);
    console.press("Older");
    console.until("older lines", || (first(&console) < newest - 90).then_some(()));
    console.press("Newest");
    console.until("newest lines", || (first(&console) >= newest).then_some(()));
}

/// How many lines are about this.
fn about(console: &Console, subject: &str) -> u64 {
    let script = "return [...document.querySelectorAll('tbody td[data-name=Subject]')].filter((it) => it.textContent === arguments[0]).length";
    console.try_script(script, &[subject.into()]).ok().and_then(|it| it.as_u64()).unwrap_or(0)
}

#[test]
fn the_chain_is_followed_and_a_line_that_was_changed_is_told() {
    let place = Place::new();
    let node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    let mut console = Console::open(&place);
    console.page("/audit");
    console.press("Follow the chain now");
    console.sees("whole");
    assert!(!console.text().contains("NOT WHOLE"));
    node.stop();
    let log = place.state().join("audit.jsonl");
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, text.replacen("home", "hame", 1)).unwrap();
    let _node = place.start();
    console.log_in_anew(&place);
    console.page("/audit");
    console.press("Follow the chain now");
    console.sees("NOT WHOLE");
}
