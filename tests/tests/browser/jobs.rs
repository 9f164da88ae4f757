//! Long work: seen as it goes on, stopped, and through a reload.

use coffer_tests::kms::{KEY, Kind, Kms, policy};
use coffer_tests::node::Place;
use dev_vault::Fault;
use serde_json::json;

use crate::console::Console;

#[test]
fn a_job_is_seen_from_its_beginning_to_its_end_through_a_reload() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    kms.rotate();
    let slow = Fault::Delay { milliseconds: 4000 };
    kms.embedded().faults().inject(slow.on("transit/rewrap/"));
    let console = Console::open(&place);
    console.page("/jobs");
    console.sees("No job was asked for yet.");
    console.page("/kms");
    console.press("Rewrap keys");
    console.sees("the rewrap has begun");
    console.press("Jobs");
    console.sees("runs");
    console.press("rewrap");
    console.until("a progress bar", || (console.count("progress") == 1).then_some(()));
    console.reload();
    assert_eq!(console.count("progress"), 1, "{}", console.text());
    assert!(console.offers("Stop"));
    console.marks();
    console.sees("done");
    console.until("no progress bar", || (console.count("progress") == 0).then_some(()));
    assert!(!console.offers("Stop"));
    assert!(console.is_marked(), "it was loaded again");
    kms.embedded().faults().clear();
}

#[test]
fn older_jobs_are_on_further_pages() {
    let place = Place::new();
    let _node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    for _ in 0..101 {
        place.ok(&["fs", "verify", "home"]);
    }
    let jobs = place.json(&["job", "list"])["jobs"].as_array().unwrap().clone();
    let console = Console::open(&place);
    console.page("/jobs");
    assert_eq!(console.count("tbody tr"), 100);
    let shown = console.source();
    assert!(shown.contains(jobs[0]["id"].as_str().unwrap()));
    console.press("Older");
    console.until("the oldest alone", || (console.count("tbody tr") == 1).then_some(()));
    assert!(console.source().contains(jobs[100]["id"].as_str().unwrap()));
    console.press("Newest");
    console.until("the newest", || (console.count("tbody tr") == 100).then_some(()));
}

#[test]
fn progress_grows_by_itself_and_a_job_that_was_stopped_is_gone_on_with() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let keys: Vec<String> = (0..8).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        kms.admin().write(&format!("transit/keys/{key}"), &json!({}));
    }
    let policies: String = keys.iter().map(|key| policy(key)).collect();
    let token = kms.token_for(&(policy(KEY) + policies.as_str()));
    let _node = place.start();
    place.ok(&["fs", "kms", "set-vault", kms.url(), KEY, &token]);
    for key in &keys {
        place.ok(&["fs", "create", &format!("of-{key}"), "--kms-key", key]);
        kms.admin().write(&format!("transit/keys/{key}/rotate"), &json!({}));
    }
    // Each master key is asked by itself.
    let slow = Fault::Delay { milliseconds: 1000 };
    kms.embedded().faults().inject(slow.on("transit/rewrap/"));
    let console = Console::open(&place);
    console.page("/kms");
    console.press("Rewrap keys");
    console.sees("the rewrap has begun");
    console.marks();
    let bar = || {
        let value = console.script("return document.querySelector('progress[value]')?.value ?? 0");
        value.as_f64().unwrap()
    };
    let first = console.until("some of it", || Some(bar()).filter(|value| *value > 0.0));
    console.until("more of it", || (bar() > first).then_some(()));
    assert!(console.is_marked(), "it was loaded again");
    // The overview shows it, too.
    console.press("Overview");
    console.until("the bar", || (console.count("progress") == 1).then_some(()));
    console.press("Jobs");
    console.press("Stop");
    console.sees("stopped");
    kms.embedded().faults().clear();
    place.until("it is stopped", || place.json(&["job", "list"])["jobs"][0]["state"] == "stopped");
    // Whoever asks for it again goes on with it.
    console.page("/kms");
    console.sees("rewrap was stopped");
    console.press("Rewrap keys");
    console.sees("the rewrap goes on");
    console.sees("rewrap is done");
}
