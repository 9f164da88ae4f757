//! Sessions: two tabs, two browsers, one that ends in the middle, one that may only look, a node that comes again.

use coffer_tests::kms::{KEY, Kind, Kms};
use coffer_tests::node::Place;
use serde_json::json;

use crate::console::Console;

#[test]
fn of_two_tabs_that_update_the_kms_at_once_the_second_is_told() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    kms.admin().write("transit/keys/second", &json!({}));
    kms.admin().write("transit/keys/third", &json!({}));
    let _node = place.start();
    let policies: Vec<_> = [KEY, "second", "third"].map(coffer_tests::kms::policy).into();
    let console = Console::open(&place);
    console.set_kms(kms.url(), KEY, &kms.token_for(&policies.concat()));
    console.press("Update KMS");
    console.fill("Key name", "second");
    let (first, other) = console.another_tab();
    console.page("/kms");
    console.press("Update KMS");
    console.fill("Key name", "third");
    console.to_tab(&first);
    console.press("Update");
    console.sees("with the master key second");
    console.to_tab(&other);
    console.press("Update");
    console.sees("the KMS configuration was changed since it was looked at");
    assert_eq!(console.value("Key name"), "third", "what was typed is kept");
    assert_eq!(place.json(&["fs", "kms"])["configured"]["master_key"], "second");
    // It is told what is set now, and can decide anew.
    console.sees("with the master key second. Update takes what stands below in its place.");
    console.press("Update");
    console.sees("with the master key third");
}

#[test]
fn a_dialog_that_is_opened_has_what_another_tab_has_set() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    kms.admin().write("transit/keys/second", &json!({}));
    let _node = place.start();
    let policies: Vec<_> = [KEY, "second"].map(coffer_tests::kms::policy).into();
    let token = kms.token_for(&policies.concat());
    let console = Console::open(&place);
    console.set_kms(kms.url(), KEY, &token);
    place.ok(&["fs", "kms", "set-vault", kms.url(), "second"]);
    console.sees("second");
    console.press("Update KMS");
    assert_eq!(console.value("Key name"), "second");
    console.fill("Key name", KEY);
    console.press("Update");
    console.sees(&format!("with the master key {KEY}"));
}

/// A browser has six connections to a host, and a page that shows what is new holds one.
#[test]
fn more_tabs_than_a_browser_has_connections_all_go_on() {
    let place = Place::new();
    let _node = place.start();
    let console = Console::open(&place);
    for _ in 0..8 {
        console.another_tab();
        console.page("/filesystems");
        console.sees("There is no filesystem yet.");
    }
    place.ok(&["fs", "create", "new", "--allow-no-kms"]);
    console.sees("new");
    console.press("Jobs");
    console.sees("No job was asked for yet.");
}

#[test]
fn a_reset_meant_for_another_kms_is_refused() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    let console = Console::open(&place);
    console.page("/kms");
    console.press("Reset KMS");
    let other = Kms::start(Kind::Embedded);
    place.ok(&["fs", "kms", "set-vault", other.url(), KEY, &other.token()]);
    console.press("Yes");
    console.sees("was changed since it was looked at");
    assert_eq!(place.json(&["fs", "kms"])["configured"]["base_url"], other.url());
}

#[test]
fn a_session_that_is_ended_in_the_middle_does_nothing_more_and_nothing_that_was_typed_is_lost() {
    let place = Place::new();
    let _node = place.start();
    let console = Console::open(&place);
    console.page("/filesystems");
    console.press("Create filesystem");
    console.tick("Make it without a KMS all the same");
    console.fill("Name", "home");
    let sessions = place.json(&["console", "sessions"]);
    let id = sessions["sessions"][0]["id"].as_str().unwrap();
    place.ok(&["console", "sessions", "--end", id]);
    console.enter();
    console.sees("Not sent yet: the session has ended. Open another one in a new tab (coffer console), and send this then.");
    assert_eq!(console.value("Name"), "home");
    assert!(place.json(&["fs", "list"])["filesystems"].as_array().unwrap().is_empty());

    let (first, _) = console.another_tab();
    console.log_in(&place);
    console.to_tab(&first);
    assert_eq!(console.dialog().as_deref(), Some("Create filesystem"));
    console.press("Create");
    console.sees("home is made");
}

#[test]
fn what_is_sent_while_the_node_is_away_is_not_lost() {
    let place = Place::new();
    fix_the_port(&place);
    let node = place.start();
    let console = Console::open(&place);
    console.page("/filesystems");
    console.press("Create filesystem");
    console.tick("Make it without a KMS all the same");
    console.fill("Name", "home");
    node.stop();
    console.enter();
    console.sees("Not sent, for there is no connection to the node.");
    assert_eq!(console.value("Name"), "home");
    let _node = place.start();
    let (first, _) = console.another_tab();
    console.log_in(&place);
    console.to_tab(&first);
    console.press("Create");
    console.sees("home is made");
}

/// What was meant for a session that may change something stays a form, and is not sent again and again.
#[test]
fn what_a_session_may_not_do_is_not_sent_and_a_form_of_another_session_is_refused_once() {
    let place = Place::new();
    let _node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    let console = Console::open(&place);
    console.page("/filesystems/home");
    console.press("Import");
    console.fill("Directory", "/somewhere");
    place.ok(&["console", "sessions", "--end-all"]);
    let (first, _) = console.another_tab();
    console.goto(place.ok(&["console", "--read-only"]).trim());
    console.sees("This session may only look.");
    console.to_tab(&first);
    console.enter();
    console.sees("Not sent, for this can't be done any more, or not in this session");
    assert_eq!(console.value("Directory"), "/somewhere");

    let refused = "const form = document.createElement('form'); form.method = 'post'; form.action = '/filesystems/home/rewrap'; document.body.append(form); form.submit(); return null";
    console.script(refused);
    console.sees("it does not carry this session's token");
    console.marks();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(console.is_marked(), "it was loaded again");
    console.press("Overview");
    console.sees("Running jobs");
}

#[test]
fn whoever_logs_in_comes_to_the_page_that_was_wanted() {
    let place = Place::new();
    let _node = place.start();
    let console = Console::open(&place);
    let wanted = "/filesystems?search=a%26b&state=locked";
    for typed in [false, true] {
        place.ok(&["console", "sessions", "--end-all"]);
        console.page(wanted);
        console.sees("No session is open, or it has ended");
        if typed {
            let link = place.ok(&["console"]);
            console.fill("Code", "a guess");
            console.press("Open the console");
            console.sees("the code is wrong");
            console.fill("Code", link.trim().split_once('#').unwrap().1);
            console.press("Open the console");
        } else {
            console.log_in(&place);
        }
        assert_eq!(console.url(), format!("{}{wanted}", console.origin()));
        assert_eq!(console.value("Name contains"), "a&b");
    }
}

/// Nobody touches anything: the page finds out by itself.
#[test]
fn a_page_whose_session_has_ended_says_so_by_itself() {
    let place = Place::new();
    let _node = place.start();
    let console = Console::open(&place);
    place.ok(&["console", "sessions", "--end-all"]);
    console.sees("Open the console");
}

#[test]
fn a_node_that_is_stopped_and_started_again_is_come_back_to() {
    let place = Place::new();
    fix_the_port(&place);
    let node = place.start();
    let console = Console::open(&place);
    console.page("/filesystems");
    node.stop();
    let _node = place.start();
    // Its sessions are in memory: a page that is open finds out.
    console.sees("Open the console");
    console.log_in(&place);
    console.page("/filesystems");
    console.sees("There is no filesystem yet.");
}

/// Has the console served from the start, on a port that is free now.
fn fix_the_port(place: &Place) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    std::fs::write(place.config(), format!("listen = '{free}'\n")).unwrap();
}

/// Whoever had its link made is not always who ended it.
#[test]
fn each_end_of_a_session_is_recorded_with_whose_doing_it_was() {
    let place = Place::new();
    let node = place.start();
    let console = Console::open(&place);
    console.press("Log out");
    console.sees("Open the console");
    console.log_in(&place);
    place.ok(&["console", "sessions", "--end-all"]);
    console.sees("Open the console");
    console.log_in(&place);
    node.stop();
    let log = std::fs::read_to_string(place.state().join("audit.jsonl")).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let lines: Vec<_> = lines.filter(|line| line["action"] == "console.session").collect();
    let told: Vec<_> = lines.iter().map(|line| line["detail"].as_str().unwrap()).collect();
    let whole = |what| format!("{what} (administrator)");
    let ends = ["logged out", "ended over the unix socket", "ended, with the node"].map(whole);
    let opened = whole("opened");
    assert_eq!(told, [&opened, &ends[0], &opened, &ends[1], &opened, &ends[2]]);
    let who = |at: usize| lines[at]["who"].as_str().unwrap();
    assert!(who(1).starts_with("console session "), "{}", who(1));
    assert!(who(3).starts_with("uid ") && who(3) != who(2), "another process: {}", who(3));
}

#[test]
fn logging_out_ends_the_session() {
    let place = Place::new();
    let _node = place.start();
    let console = Console::open(&place);
    console.press("Log out");
    console.sees("Open the console");
    console.back();
    console.sees("Open the console");
    let sessions = place.json(&["console", "sessions"]);
    assert!(sessions["sessions"].as_array().unwrap().is_empty(), "{sessions}");
}

#[test]
fn who_may_only_look_is_offered_nothing_that_changes_anything() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    let locked = ["fs", "create", "shut"];
    place.ok(&locked);
    place.ok(&["fs", "lock", "shut"]);
    place.ok(&["fs", "verify", "home"]);
    let console = Console::look(&place);
    let id = place.json(&["job", "list"])["jobs"][0]["id"].as_str().unwrap().to_owned();
    let job = format!("/jobs/{id}");
    for page in [
        "/",
        "/kms",
        "/filesystems",
        "/filesystems/home",
        "/filesystems/shut",
        "/jobs",
        &job,
        "/audit",
    ] {
        console.page(page);
        console.sees("This session may only look.");
        let forms = console.script(
            "return [...document.querySelectorAll('form[method=post]')].map((it) => it.getAttribute('action'))",
        );
        assert_eq!(forms, json!(["/logout"]), "{page}");
        assert_eq!(console.count("[data-opens]"), 0, "{page}");
    }
    // Whoever sends it all the same is refused, over forms and over the API.
    let refused = console.slow_script(
        "const done = arguments[0]; const csrf = document.querySelector('[name=csrf]').value; Promise.all([\
         fetch('/filesystems', {method: 'POST', body: new URLSearchParams({csrf, name: 'new', allow_no_kms: 'yes'})}),\
         fetch('/filesystems/home/lock', {method: 'POST', body: new URLSearchParams({csrf})}),\
         fetch('/kms/rewrap', {method: 'POST', body: new URLSearchParams({csrf})}),\
         fetch('/v1/kms/check', {method: 'POST', headers: {'x-csrf-token': csrf}}),\
         fetch('/v1/filesystems/home', {method: 'DELETE', headers: {'x-csrf-token': csrf}}),\
         ]).then((all) => done(all.map((it) => it.status)))",
    );
    assert_eq!(refused, json!([403, 403, 403, 403, 403]));
    assert_eq!(place.json(&["fs", "show", "home"])["state"], "unlocked");
    assert_eq!(place.json(&["fs", "list"])["filesystems"].as_array().unwrap().len(), 2);
    console.press("Log out");
    console.sees("Open the console");
}
