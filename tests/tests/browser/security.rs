//! What is refused: other hosts and origins, other kinds of content, codes and cookies that are used up, guesses, scripts.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use coffer_tests::kms::{KEY, Kind, Kms};
use coffer_tests::node::Place;
use dev_vault::Fault;
use serde_json::json;

use crate::console::Console;
use crate::http::{FORM, Session, send};

fn filesystems(place: &Place) -> usize {
    place.json(&["fs", "list"])["filesystems"].as_array().unwrap().len()
}

#[test]
fn a_request_for_a_foreign_host_is_refused() {
    let place = Place::new();
    let _node = place.start();
    let session = Session::open(&place);
    let (_, port) = session.origin.rsplit_once(':').unwrap();
    let rebound = format!("evil.example:{port}");
    for host in ["evil.example", &rebound, "127.0.0.1", "127.0.0.1:1"] {
        for request in ["GET /", "GET /login", "GET /v1/status", "POST /filesystems"] {
            let refused = session.send(request, &[("host", host)], "");
            assert_eq!(refused.status, 421, "{host}: {refused:?}");
            assert!(!refused.body.contains(&session.csrf));
        }
    }
    assert_eq!(session.send("GET /", &[("host", &format!("localhost:{port}"))], "").status, 200);
}

/// Streams too, which name files at a job's end.
#[test]
fn no_answer_is_kept_but_that_of_an_asset() {
    let place = Place::new();
    let _node = place.start();
    let console = Console::open(&place);
    let kept = "const done = arguments[0]; Promise.all(['/', '/kms', '/v1/status', '/v1/events', document.scripts[0].src].map(async (it) => {\
         const stop = new AbortController(); const answer = await fetch(it, { signal: stop.signal }); stop.abort();\
         return answer.headers.get('cache-control'); })).then(done)";
    let kept = console.slow_script(kept);
    let asset = "public, max-age=31536000, immutable";
    assert_eq!(kept, json!(["no-store", "no-store", "no-store", "no-store", asset]));
}

#[test]
fn a_request_from_a_foreign_origin_is_refused() {
    let place = Place::new();
    let _node = place.start();
    let session = Session::open(&place);
    let body = format!("csrf={}&name=home&allow_no_kms=yes", session.csrf);
    for origin in ["http://evil.example", "null", "", "https://127.0.0.1", "http://127.0.0.1:1"] {
        let refused = session.send("POST /filesystems", &[FORM, ("origin", origin)], &body);
        assert_eq!(refused.status, 403, "{origin}: {refused:?}");
        assert!(refused.body.contains("foreign-origin"), "{refused:?}");
    }
    let site = ("sec-fetch-site", "cross-site");
    assert_eq!(session.send("POST /filesystems", &[FORM, site], &body).status, 403);
    assert_eq!(filesystems(&place), 0);
    assert_eq!(session.send("POST /filesystems", &[FORM], &body).status, 303);
}

#[test]
fn a_form_without_the_session_s_token_is_refused() {
    let place = Place::new();
    let _node = place.start();
    let (session, other) = (Session::open(&place), Session::open(&place));
    for csrf in ["", "guess", &other.csrf] {
        let body = format!("csrf={csrf}&name=home&allow_no_kms=yes");
        let refused = session.send("POST /filesystems", &[FORM], &body);
        assert!(
            refused.status == 403 && refused.body.contains("data-code=\"csrf\""),
            "{refused:?}"
        );
        let json = ("content-type", "application/json");
        let body = json!({ "name": "home", "allow_no_kms": true }).to_string();
        let headers = [json, ("x-csrf-token", csrf)];
        let refused = session.send("POST /v1/filesystems", &headers, &body);
        assert_eq!(refused.status, 403, "{refused:?}");
    }
    assert_eq!(filesystems(&place), 0);
}

#[test]
fn content_of_another_kind_is_refused() {
    let place = Place::new();
    let _node = place.start();
    let session = Session::open(&place);
    let body = format!("csrf={}&name=home&allow_no_kms=yes", session.csrf);
    for kind in ["text/plain", "multipart/form-data; boundary=x", "application/json", ""] {
        let refused = session.send("POST /filesystems", &[("content-type", kind)], &body);
        assert_eq!(refused.status, 415, "{kind}: {refused:?}");
    }
    let headers = [("content-type", "text/plain"), ("x-csrf-token", session.csrf.as_str())];
    let body = json!({ "name": "home", "allow_no_kms": true }).to_string();
    assert_eq!(session.send("POST /v1/filesystems", &headers, &body).status, 415);
    assert_eq!(filesystems(&place), 0);
}

#[test]
fn a_code_is_good_once() {
    let place = Place::new();
    let _node = place.start();
    let link = place.ok(&["console"]);
    let (origin, code) = link.trim().split_once("/login#").unwrap();
    let body = format!("code={code}");
    assert_eq!(send(origin, "POST /login", &[FORM], &body).status, 303);
    let replayed = send(origin, "POST /login", &[FORM], &body);
    assert!(replayed.status == 403 && replayed.header("set-cookie").is_empty(), "{replayed:?}");
    // In a query it is none.
    let link = place.ok(&["console"]);
    let (_, code) = link.trim().split_once("/login#").unwrap();
    let looked = send(origin, &format!("GET /login?code={code}"), &[], "");
    assert!(looked.header("set-cookie").is_empty(), "{looked:?}");
    let sessions = place.json(&["console", "sessions"]);
    assert_eq!(sessions["sessions"].as_array().unwrap().len(), 1);
}

#[test]
fn a_cookie_is_good_for_nothing_after_the_logout() {
    let place = Place::new();
    let _node = place.start();
    let console = Console::open(&place);
    let cookies = console.cookies();
    let [cookie] = &cookies[..] else { panic!("one cookie: {cookies:?}") };
    assert_eq!(cookie.http_only, Some(true));
    assert_eq!(cookie.same_site, Some(thirtyfour::SameSite::Strict));
    assert_eq!(console.script("return document.cookie"), "");
    let stolen = format!("{}={}", cookie.name, cookie.value);
    let csrf = console.script("return document.querySelector('[name=csrf]').value");
    let headers = [("cookie", stolen.as_str())];
    assert_eq!(send(console.origin(), "GET /", &headers, "").status, 200, "it was good before");
    console.press("Log out");
    console.sees("Open the console");

    let looked = send(console.origin(), "GET /", &headers, "");
    assert_eq!((looked.status, looked.header("location")), (303, "/login"));
    for path in ["/v1/status", "/v1/events", "/v1/kms"] {
        assert_eq!(send(console.origin(), &format!("GET {path}"), &headers, "").status, 401);
    }
    let body = format!("csrf={}&name=home&allow_no_kms=yes", csrf.as_str().unwrap());
    let refused = send(console.origin(), "POST /filesystems", &[headers[0], FORM], &body);
    assert_eq!(refused.status, 401, "{refused:?}");
    assert_eq!(filesystems(&place), 0);
}

#[test]
fn sessions_are_not_to_be_had_through_the_console() {
    let place = Place::new();
    let _node = place.start();
    let session = Session::open(&place);
    let token = ("x-csrf-token", session.csrf.as_str());
    for request in
        ["POST /v1/console/links", "GET /v1/console/sessions", "DELETE /v1/console/sessions"]
    {
        assert_eq!(session.send(request, &[token], "").status, 403, "{request}");
    }
}

#[test]
fn of_a_thousand_guesses_ten_are_looked_at_in_a_minute() {
    let place = Place::new();
    let _node = place.start();
    let link = place.ok(&["console"]);
    let (origin, code) = link.trim().split_once("/login#").unwrap();
    let begun = Instant::now();
    let guess = |n: u32| send(origin, "POST /login", &[FORM], &format!("code=guess-{n}")).status;
    let statuses: Vec<u16> = (0..1000).map(guess).collect();
    assert!(begun.elapsed() < Duration::from_secs(30), "the machine is too slow for this test");
    assert_eq!(statuses[..10], [403; 10]);
    assert_eq!(statuses[10..], [429; 990]);
    let right = send(origin, "POST /login", &[FORM], &format!("code={code}"));
    assert_eq!(right.status, 429, "the right one is not looked at either");
    let lines = place.json(&["audit", "show"]);
    let refused =
        lines["lines"].as_array().unwrap().iter().filter(|it| it["action"] == "console.session");
    assert_eq!(refused.count(), 10, "a line for each that was looked at");

    std::thread::sleep(Duration::from_secs(61).saturating_sub(begun.elapsed()));
    Session::open(&place);
}

/// A page that somebody else serves, at another port of the same host: to cookies that is the same site.
fn foreign_page(html: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/html\r\n";
            let _ = write!(stream, "{head}content-length: {}\r\n\r\n{html}", html.len());
        }
    });
    format!("http://{address}/")
}

#[test]
fn pages_of_others_can_neither_send_nor_frame_nor_read_the_console() {
    let place = Place::new();
    let _node = place.start();
    let console = Console::open(&place);
    let (origin, csrf) =
        (console.origin(), console.script("return document.querySelector('[name=csrf]').value"));
    let csrf = csrf.as_str().unwrap();
    // The worst case: it even knows the token.
    let form = |kind: &str| {
        format!(
            "<form method=post action='{origin}/filesystems' enctype='{kind}'><input name=csrf value='{csrf}'>\
             <input name=name value=home><input name=allow_no_kms value=yes><button>Send</button></form>"
        )
    };
    for kind in ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data"] {
        for url in
            [foreign_page(form(kind)), foreign_page(form(kind)).replace("127.0.0.1", "localhost")]
        {
            console.goto(&url);
            console.press("Send");
            console.sees("foreign-origin");
        }
    }
    let reads = foreign_page(String::new());
    console.goto(&reads);
    let read = console.slow_script(&format!(
        "const done = arguments[0]; Promise.all(['{origin}/', '{origin}/v1/status'].map((url) => fetch(url, {{credentials: 'include'}})\
         .then((it) => it.text(), () => 'refused'))).then(done)"
    ));
    assert_eq!(read, json!(["refused", "refused"]));
    let sent = console.slow_script(&format!(
        "const done = arguments[0]; fetch('{origin}/filesystems', {{method: 'POST', mode: 'no-cors', credentials: 'include',\
         body: new URLSearchParams({{csrf: '{csrf}', name: 'home', allow_no_kms: 'yes'}})}}).then(() => done('sent'), () => done('refused'))"
    ));
    assert_eq!(sent, "refused");
    assert_eq!(filesystems(&place), 0);
    console.complaints();

    console.goto(&foreign_page(format!("<iframe src='{origin}/'></iframe>")));
    console.until("a complaint about the frame", || {
        let complaints = console.complaints();
        complaints
            .iter()
            .any(|it| it.contains("frame-ancestors") || it.contains("X-Frame-Options"))
            .then_some(())
    });
    console.complaints();
}

#[test]
fn a_script_in_a_page_of_ours_would_not_run_and_would_be_complained_about() {
    let place = Place::new();
    let _node = place.start();
    let console = Console::open(&place);
    console.script(
        "const it = document.createElement('script'); it.textContent = 'window.ran = true'; document.body.append(it);\
         document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = true\"><b style=\"color: red\">x</b>')",
    );
    let complaints = console.until("complaints", || {
        let complaints = console.complaints();
        (complaints.len() >= 2).then_some(complaints)
    });
    assert!(complaints.iter().all(|it| it.contains("Content Security Policy")), "{complaints:?}");
    assert_eq!(console.script("return window.ran === undefined"), true);
    console.complaints();
}

const SCRIPT: &str =
    "\"'></textarea></title><script>window.ran=true</script><img src=x onerror=window.ran=true>";

/// That this page shows the script as text. What has run, or was kept from it by the policy alone, is complained about.
fn shows_it_as_text(console: &Console, whole: bool) {
    let ran = console.script("return window.ran === true || document.querySelector('main script, main img, title *') !== null");
    assert_eq!(ran, false, "{}", console.url());
    if whole {
        console.sees("<script>window.ran=true</script>");
    }
    assert_eq!(console.complaints(), Vec::<String>::new());
}

#[test]
fn a_script_in_a_text_field_is_text() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    let console = Console::open(&place);
    console.page("/kms");
    console.press("Configure KMS");
    let update = |fields: &[(&str, &str)]| {
        for (label, text) in [("URL", kms.url()), ("Key name", KEY), ("API token", "hvs.x")] {
            console.fill(label, text);
        }
        for (label, text) in fields {
            console.fill(label, text);
        }
        console.press("Update");
        assert!(console.dialog().is_some(), "{}", console.text());
    };
    update(&[("URL", SCRIPT)]);
    shows_it_as_text(&console, false);
    assert_eq!(console.value("URL"), SCRIPT);
    update(&[("URL", &format!("http://127.0.0.1:9/{SCRIPT}"))]);
    shows_it_as_text(&console, false);
    update(&[("Key name", SCRIPT)]);
    shows_it_as_text(&console, false);
    update(&[("API token", SCRIPT)]);
    shows_it_as_text(&console, false);
    console.press("More");
    for label in
        ["Namespace", "Transit path", "CA certificate", "Role id", "Auth path", "Token file"]
    {
        update(&[(label, SCRIPT)]);
        shows_it_as_text(&console, false);
        assert!(console.value(label).contains("<script>"), "what was typed is kept");
        console.fill(label, "");
    }

    // Vault's own words.
    let body =
        json!({ "errors": [SCRIPT, format!("1 error occurred:\n\t* {SCRIPT}")] }).to_string();
    for status in [400, 403, 404, 500, 503] {
        let fault = Fault::Status { status, body: body.clone(), headers: Default::default() };
        kms.embedded().faults().inject(fault.on(""));
        update(&[]);
        shows_it_as_text(&console, false);
        kms.embedded().faults().clear();
    }
    console.press("Cancel");

    place.set_vault(&kms);
    for label in ["Name", "Backing directory", "Key name"] {
        console.page("/filesystems");
        console.press("Create filesystem");
        console.press("More");
        console.fill("Name", "home");
        console.fill(label, SCRIPT);
        console.press("Create");
        assert!(console.dialog().is_some(), "{}", console.text());
        shows_it_as_text(&console, false);
    }
    for name in ["About", "Action"] {
        console.page("/audit");
        console.fill(name, SCRIPT);
        console.press("Search");
        shows_it_as_text(&console, false);
        assert_eq!(console.value(name), SCRIPT);
    }
    console.page("/filesystems");
    console.fill("Name contains", SCRIPT);
    console.press("Search");
    shows_it_as_text(&console, false);
    let encoded = "%22%3E%3Cscript%3Ewindow.ran%3Dtrue%3C%2Fscript%3E%3Cimg%20src%3Dx%20onerror%3Dwindow.ran%3Dtrue%3E";
    for path in [
        "/",
        "/filesystems/",
        "/jobs/",
        "/kms?impact=",
        "/kms?impact=versions&below=",
        "/filesystems?state=",
        "/jobs?x=",
    ] {
        console.page(&format!("{path}{encoded}"));
        shows_it_as_text(&console, false);
    }
}

#[test]
fn a_script_in_the_name_of_a_file_or_in_what_vault_says_of_a_job_is_text() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    // A directory with such a name, and in it another and what can't be imported.
    let name = SCRIPT.replace('/', "\u{2215}");
    let source = place.path(&name);
    std::fs::create_dir_all(source.join(&name)).unwrap();
    let _socket = UnixListener::bind(place.path("socket")).unwrap();
    std::fs::rename(place.path("socket"), source.join(format!("{name}-2"))).unwrap();
    let console = Console::open(&place);
    console.page("/filesystems/home");
    console.press("Import");
    console.fill("Directory", source.to_str().unwrap());
    console.press("Import");
    console.sees("import of home is done");
    shows_it_as_text(&console, false);
    console.press("import of home");
    console.sees("What could not be done");
    console.sees("<script>window.ran=true");
    shows_it_as_text(&console, false);
    console.page("/filesystems/home/files");
    console.sees("<script>window.ran=true");
    shows_it_as_text(&console, false);
    console.press(&name);
    console.sees("It is empty.");
    shows_it_as_text(&console, false);
    console.page("/audit");
    shows_it_as_text(&console, false);

    kms.rotate();
    let body = json!({ "errors": [SCRIPT] }).to_string();
    let fault = Fault::Status { status: 400, body, headers: Default::default() };
    kms.embedded().faults().inject(fault.on("transit/rewrap/"));
    console.page("/kms");
    console.press("Rewrap keys");
    console.sees("rewrap waits");
    // It came into the page by itself.
    shows_it_as_text(&console, true);
    for page in ["/kms", "/", "/jobs"] {
        console.page(page);
        shows_it_as_text(&console, true);
    }
    console.page("/kms");
    console.press("Check now");
    shows_it_as_text(&console, true);
    kms.embedded().faults().clear();
}

#[test]
fn no_secret_of_a_session_and_no_token_is_in_a_log_an_address_or_a_page() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let mut node = place.serve().env("RUST_LOG", "trace").spawn().unwrap();
    assert!(place.wait_for_socket());
    let link = place.ok(&["console"]);
    let (_, code) = link.trim().split_once("/login#").unwrap();
    let console = Console::open(&place);
    let secret = console.cookies()[0].value.clone();
    let csrf = console.script("return document.querySelector('[name=csrf]').value");
    let csrf = csrf.as_str().unwrap().to_owned();
    let token = kms.token();
    let (mut pages, mut addresses) = (String::new(), String::new());
    let mut seen = || {
        addresses.push_str(&console.url());
        // What each form carries is the CSRF token's one place.
        pages.push_str(&console.source().replace(&format!("name=\"csrf\" value=\"{csrf}\""), ""));
    };
    console.page("/kms");
    console.press("Configure KMS");
    for (url, token) in
        [(kms.url(), "hvs.canary-token"), ("http://127.0.0.1:9", &token), (kms.url(), &token)]
    {
        console.fill("URL", url);
        console.fill("Key name", KEY);
        console.fill("API token", token);
        console.press("Update");
        seen();
    }
    console.sees("Update KMS");
    for press in ["Check now", "Rehearse now", "Rewrap keys", "Update KMS"] {
        console.press(press);
        seen();
    }
    place.ok(&["fs", "create", "home"]);
    for page in ["/", "/filesystems", "/filesystems/home", "/jobs", "/audit", "/nowhere"] {
        console.page(page);
        seen();
    }
    let said = [
        place.ok(&["audit", "show", "--json"]),
        place.ok(&["console", "sessions", "--json"]),
        place.metrics(),
    ];
    drop(console);
    node.kill().unwrap();
    node.wait().unwrap();
    let log = place.log();
    assert!(log.contains("/kms"), "requests are logged");
    let places = [
        ("the log", &log),
        ("pages", &pages),
        ("addresses", &addresses),
        ("answers", &said.concat()),
    ];
    for canary in [&secret, &csrf, &token, code, "hvs.canary-token"] {
        for (what, text) in places {
            assert!(!text.contains(canary), "{canary} is in {what}");
        }
    }
    let store = std::fs::read(place.state().join("audit.jsonl")).unwrap();
    assert!(!String::from_utf8_lossy(&store).contains(&secret));
}
