//! Requests that are wrong, and what is written down about those that are right.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::world::{JSON, TOKEN, World, set_vault};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_a_problem() {
    let world = World::new();
    let node = world.start().await;
    let null = Value::Null;
    for (status, method, path) in [
        (404, "GET", "/v1/nothing"),
        (405, "DELETE", "/v1/status"),
        (400, "POST", "/v1/filesystems"),
        (400, "GET", "/v1/jobs/x"),
        (404, "GET", "/v1/jobs/6f1c2d3e-0a1b-4c5d-8e9f-001122334455"),
        (404, "GET", "/v1/filesystems/nobody"),
        (400, "GET", "/v1/filesystems/a%2Fb"),
        (404, "POST", "/v1/filesystems/nobody/unlock"),
        (404, "DELETE", "/v1/filesystems/nobody"),
        (409, "POST", "/v1/kms/rewrap"),
        // What can't be read in a path or a query.
        (400, "GET", "/v1/filesystems?limit=many"),
        (400, "GET", "/v1/filesystems?limit=-1"),
        // What would be another page than was asked for.
        (400, "GET", "/v1/filesystems?limit=0"),
        (400, "GET", "/v1/jobs?limit=1001"),
        (400, "GET", "/v1/audit?limit=1001"),
        (400, "GET", "/v1/filesystems/home/ls?limit=50001"),
        (400, "GET", "/v1/filesystems/home/ls?limit=x"),
        (400, "GET", "/v1/filesystems/home/ls?path=%zz"),
        (400, "DELETE", "/v1/filesystems/home?forget=maybe"),
        (400, "GET", "/v1/filesystems/%ff"),
        (400, "POST", "/v1/filesystems/%ff/lock"),
        (400, "GET", "/v1/jobs/%ff"),
        (400, "POST", "/v1/jobs/%ff/stop"),
        (400, "GET", "/v1/jobs/6f1c2d3e-0a1b-4c5d-8e9f-001122334455?wait_ms=long"),
        (400, "GET", "/v1/kms/impact"),
        (400, "GET", "/v1/kms/impact?of=nothing"),
        (400, "GET", "/v1/kms/impact?of=versions&below=x"),
        (400, "GET", "/v1/kms/policy"),
        (400, "GET", "/v1/kms/policy?master_key=a,"),
        (400, "DELETE", "/v1/kms?allow_downgrade=1"),
        (400, "GET", "/v1/audit?before=x"),
    ] {
        let problem = node.refused(status, method, path, &null).await;
        assert_eq!(problem["status"], status, "{problem}");
        assert!(!problem["title"].as_str().unwrap().is_empty());
        let code = problem["code"].as_str().unwrap();
        assert_eq!(problem["type"], format!("urn:coffer:problem:{code}"));
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_act_whose_client_goes_away_is_done_to_its_end() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let mut asked = world.kms().hold("wrap");
    let client = node.send("POST", "/v1/filesystems", r#"{"name": "home"}"#).await;
    asked.reached().await;
    drop(client);
    // Time for the node to see it, which must change nothing.
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(asked);
    node.until("/v1/filesystems", |answer| answer["filesystems"][0]["state"] == "unlocked").await;

    world.kms().rotate();
    let mut asked = world.kms().hold("unwrap");
    let client = node.send("POST", "/v1/kms/rewrap", "").await;
    asked.reached().await;
    drop(client);
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(asked);
    node.until("/v1/filesystems/home", |fs| fs["wrapped_by"]["version"] == 2).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_fit_is_not_quoted() {
    let world = World::new();
    let node = world.start().await;
    for body in [
        format!(
            r#"{{"base_url":"https://v","master_key":"k","token":"{TOKEN}","allow_http":"{TOKEN}"}}"#
        ),
        format!(r#"{{"base_url":"https://v","master_key":"k","{TOKEN}":1}}"#),
        format!(r#""{TOKEN}"#),
    ] {
        // `ask` itself requires that no answer holds the token.
        let answer = node.ask("PUT", "/v1/kms", &body).await;
        assert_eq!((answer.status, &answer.body["exit"]), (400, &json!("usage")), "{answer:?}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_problem_names_what_of_the_request_is_the_cause() {
    let world = World::new();
    let node = world.start().await;
    let file = world.path("a-file");
    fs::write(&file, "").unwrap();
    node.post("/v1/filesystems", &json!({"name": "home", "allow_no_kms": true})).await;
    let kms = |more: Value| {
        let mut kms = set_vault();
        kms.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        kms
    };
    let (put, post) = ("PUT", "POST");
    for (method, path, body, field) in [
        (post, "/v1/filesystems", json!({"name": "a/b"}), "name"),
        (post, "/v1/filesystems", json!({"name": "home", "allow_no_kms": true}), "name"),
        (post, "/v1/filesystems", json!({"name": "a"}), "allow_no_kms"),
        (post, "/v1/filesystems", json!({"name": "a", "backing": "relative"}), "backing"),
        (post, "/v1/filesystems", json!({"name": "a", "backing": "/"}), "backing"),
        (post, "/v1/filesystems/home/import", json!({"source": "relative"}), "source"),
        (post, "/v1/filesystems/home/import", json!({"source": file}), "source"),
        (post, "/v1/filesystems/home/export", json!({"target": "relative"}), "target"),
        (post, "/v1/filesystems/home/export", json!({"target": world.path("state")}), "target"),
        (put, "/v1/kms", kms(json!({"token": null})), "token"),
        (put, "/v1/kms", kms(json!({"token": null, "role_id": "r"})), "secret_id"),
        (put, "/v1/kms", kms(json!({"token": null, "token_file": "relative"})), "token_file"),
        (put, "/v1/kms", kms(json!({"client_cert": "c"})), "client_key"),
    ] {
        let answer = node.ask(method, path, &body.to_string()).await;
        assert!((400..500).contains(&answer.status), "{answer:?}");
        assert_eq!(answer.body["field"], field, "{body}: {answer:?}");
    }
    let (get, none) = ("GET", Value::Null);
    let refused = node.refused(400, get, "/v1/filesystems/home/ls?path=%2F..", &none).await;
    assert_eq!(refused["field"], "path");
    let refused = node.refused(404, get, "/v1/filesystems/nobody", &none).await;
    assert!(refused["field"].is_null(), "{refused}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_directory_can_be_no_filesystem_is_made_and_nothing_is_left() {
    let world = World::new();
    let node = world.start().await;
    let file = world.path("a-file");
    fs::write(&file, "somebody's").unwrap();
    let file = file.to_str().unwrap();
    let long = format!("/tmp/{}", "x".repeat(300));
    let deep = format!("/tmp{}", "/x".repeat(2500));
    for backing in [file, "/dev/null/x", &format!("{file}/inside"), &long, &deep, "/tmp/nul%00"] {
        let body = json!({"name": "home", "backing": backing, "allow_no_kms": true});
        let refused = node.refused(409, "POST", "/v1/filesystems", &body).await;
        assert_eq!(refused["code"], "filesystem-unfit", "{refused}");
        assert_eq!(refused["field"], "backing", "{refused}");
        assert_eq!(node.get("/v1/filesystems").await["filesystems"], json!([]), "{backing}");
    }
    assert_eq!(fs::read_to_string(file).unwrap(), "somebody's");
    // The name is free.
    node.post("/v1/filesystems", &json!({"name": "home", "allow_no_kms": true})).await;
    node.stop().await;
}

/// A slip is not taken for what destroys more.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_known_in_a_query_or_where_no_body_is_taken_is_refused() {
    let world = World::new();
    let node = world.start().await;
    node.post("/v1/filesystems", &json!({"name": "home", "allow_no_kms": true})).await;
    let home = "/v1/filesystems/home";
    for (method, path, body) in [
        ("DELETE", "/v1/filesystems/home?forgot=true", json!(null)),
        ("DELETE", home, json!({"forget": true})),
        ("DELETE", "/v1/kms?allow_downgrad=true", json!(null)),
        ("POST", "/v1/kms/check", json!({"x": 1})),
        ("POST", "/v1/filesystems/home/unlock", json!({"force": true})),
        ("GET", "/v1/filesystems?name=home", json!(null)),
        ("GET", "/v1/jobs?state=done", json!(null)),
        ("GET", "/v1/audit?lines=1", json!(null)),
        // Lists in place of objects.
        ("POST", "/v1/filesystems", json!(["other"])),
        ("POST", "/v1/filesystems/home/lock", json!([true])),
        ("POST", "/v1/console/links", json!([])),
    ] {
        let refused = node.refused(400, method, path, &body).await;
        assert_eq!(refused["code"], "bad-request", "{method} {path}: {refused}");
    }
    assert_eq!(node.get(home).await["state"], "unlocked");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_large_is_refused_as_that() {
    let world = World::new();
    let node = world.start().await;
    // Nothing of it has to be sent, and the node waits for none of it.
    let head = format!("{JSON}content-length: {}\r\n", 2 << 20);
    let mut stream = node.send_with(&head, "POST", "/v1/filesystems", "").await;
    let mut answer = vec![0; 4096];
    let read = stream.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("\"too-large\""), "{answer}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_in_the_audit_log_and_no_token() {
    let world = World::new();
    let node = world.start().await;
    node.ok("PUT", "/v1/kms", &set_vault()).await;
    node.refused(400, "POST", "/v1/filesystems", &json!({"name": "a", "backing": "/"})).await;
    node.get("/v1/kms").await;
    node.stop().await;
    let log = fs::read_to_string(world.path("state/audit.jsonl")).unwrap();
    let acts: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let requests: Vec<_> = acts.iter().filter(|act| act["action"] == "admin.request").collect();
    let outcomes: Vec<_> = requests.iter().map(|request| &request["outcome"]).collect();
    assert_eq!(outcomes, ["begun", "done", "begun", "refused"], "{log}");
    assert_eq!(requests[0]["subject"], "PUT /v1/kms");
    let me = format!("uid {}", rustix::process::geteuid().as_raw());
    assert!(requests[0]["who"].as_str().unwrap().starts_with(&me), "{log}");
    assert!(acts.iter().any(|act| act["action"] == "kms.configure"), "{log}");
    assert!(!log.contains(TOKEN));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kms_is_shown_without_its_token() {
    let world = World::new();
    let node = world.start().await;
    assert_eq!(node.get("/v1/kms").await["configured"], Value::Null);
    let change = node.ok("PUT", "/v1/kms", &set_vault()).await;
    assert_eq!(change["change"], "added", "{change}");
    let shown = node.get("/v1/kms").await;
    assert_eq!(shown["configured"]["credential_set"], true, "{shown}");
    assert_eq!(shown["configured"]["latest_version"], 1);
    assert_eq!(node.ok("PUT", "/v1/kms", &set_vault()).await["change"], "updated");
    let path = "/v1/kms?allow_downgrade=false";
    assert_eq!(node.ok("DELETE", path, &Value::Null).await["change"], "removed");
    assert_eq!(node.get("/v1/status").await["kms"]["configured"], Value::Null);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_path_makes_no_long_line_of_the_audit_log() {
    let world = World::new();
    let node = world.start().await;
    let path = format!("/v1/filesystems/{}/lock", "x".repeat(7000));
    node.refused(400, "POST", &path, &Value::Null).await;
    node.stop().await;
    let log = fs::read_to_string(world.path("state/audit.jsonl")).unwrap();
    let of_this: Vec<_> = log.lines().filter(|line| line.contains("xxx")).collect();
    assert_eq!(of_this.len(), 2, "{log}");
    for line in of_this {
        let asked = "POST ".len() + path.len();
        assert!(line.contains(&format!("xxx… (shortened: {asked} bytes)")), "{line}");
        assert!(line.len() < 3000, "{}", line.len());
    }
    let node = world.start().await;
    let verified = node.get("/v1/audit/verify").await;
    assert!(verified["trouble"].is_null(), "the chain is whole: {verified}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_said_to_be_json() {
    let world = World::new();
    let node = world.start().await;
    let body = r#"{"name": "home", "allow_no_kms": true}"#;
    for kind in ["", "content-type: text/plain\r\n", "content-type: application/jsonx\r\n"] {
        let answer = node.ask_with(kind, "POST", "/v1/filesystems", body).await;
        assert_eq!((answer.status, &*answer.kind), (415, "application/problem+json"), "{kind}");
        assert_eq!(answer.body["code"], "unsupported-media-type");
    }
    assert_eq!(node.get("/v1/filesystems").await["filesystems"], json!([]));
    for (name, kind) in [("a", JSON), ("b", "content-type: Application/JSON; charset=utf-8\r\n")] {
        let body = body.replace("home", name);
        assert_eq!(node.ask_with(kind, "POST", "/v1/filesystems", &body).await.status, 200);
    }
    // Nothing needs to be said of nothing.
    assert_eq!(node.ask_with("", "POST", "/v1/filesystems/a/unlock", "").await.status, 200);
    assert_eq!(node.ask_with("", "POST", "/v1/kms/rewrap", "").await.body["code"], "no-kms");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_for_master_keys_is_told_before_a_kms_is_set() {
    let world = World::new();
    let node = world.start().await;
    let policy = node.get("/v1/kms/policy?master_key=a,b&transit_path=team%2Ftransit").await;
    let text = policy["policy"].as_str().unwrap();
    for part in ["a {", "b {", r#""transit_path": "team/transit""#] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(policy["commands"], json!(["apply it"]));
    node.stop().await;
}
