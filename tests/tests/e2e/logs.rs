//! The node's log as JSON: each line tells which request, job and KMS it belongs to.

use std::fs;

use coffer_tests::kms::{Kind, Kms};
use coffer_tests::node::Place;
use dev_vault::Fault;
use serde_json::{Value, json};
use testkit::tree;

#[test]
fn lines_of_requests_and_jobs_say_of_which() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let source = place.path("source");
    tree::small_files(&source, 5).unwrap();
    fs::write(place.config(), "log_format = \"json\"\n").unwrap();
    let mut node = place
        .serve()
        .env("RUST_LOG", "warn,daemon=debug,key_manager=info,vault_transit=debug")
        .spawn()
        .unwrap();
    assert!(place.wait_for_socket());
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    let again = Fault::Status { status: 500, body: String::new(), headers: Default::default() };
    kms.rotate();
    kms.embedded().faults().inject(again.clone().on("transit/rewrap/").times(1));
    place.ok(&["fs", "kms", "rewrap"]);
    place.ok(&["fs", "lock", "home"]);
    kms.embedded().faults().inject(again.on("transit/decrypt/").times(1));
    place.ok(&["fs", "unlock", "home"]);
    let jobs = place.json(&["job", "list"])["jobs"].clone();
    let configured = place.json(&["fs", "kms"])["configured"]["id"].clone();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(node.id().cast_signed()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert!(node.wait().unwrap().success());

    let log = place.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    let told = |message: &str| {
        let said = lines.iter().filter(|line| line["fields"]["message"] == message);
        said.cloned().collect::<Vec<_>>()
    };
    let job = |kind: &str| {
        let mut jobs = jobs.as_array().unwrap().iter();
        jobs.find(|job| job["kind"] == kind).unwrap()["id"].clone()
    };

    let [import] = &told("the job ended")[..] else { panic!("{log}") };
    let (id, kind, filesystem) = (job("import"), "import", "home");
    let in_job = json!({ "name": "job", "job": id, "kind": kind, "filesystem": filesystem });
    assert_eq!(import["spans"], json!([in_job]));
    let [moved] = &told("the move of keys ended")[..] else { panic!("{log}") };
    assert_eq!(moved["span"]["job"], job("rewrap"), "{moved}");

    let retried = told("asking Vault again");
    let names = |line: &Value| -> Vec<String> {
        let spans = line["spans"].as_array().unwrap().iter();
        spans.map(|span| span["name"].as_str().unwrap().to_owned()).collect()
    };
    let of = |operation: &str| {
        let mut retried = retried.iter();
        retried
            .find(|line| line["span"]["operation"] == operation)
            .unwrap_or_else(|| panic!("{log}"))
    };
    let rewrap = of("rewrap");
    assert_eq!(names(rewrap), ["job", "kms", "vault"], "{rewrap}");
    assert_eq!(rewrap["spans"][0]["job"], job("rewrap"), "{rewrap}");
    assert_eq!(rewrap["spans"][1]["kms"], configured, "{rewrap}");
    assert_eq!(rewrap["spans"][2]["vault"], kms.url(), "{rewrap}");
    let unlock = of("decrypt");
    assert_eq!(names(unlock), ["request", "kms", "vault"], "{unlock}");
    assert_eq!(unlock["spans"][0]["path"], "/v1/filesystems/home/unlock", "{unlock}");
    assert!(unlock["spans"][0]["peer"].as_str().unwrap().starts_with("uid 0"), "{unlock}");

    for answered in told("answered") {
        assert_eq!(names(&answered), ["request"], "{answered}");
        assert!(answered["span"]["method"].is_string() && answered["span"]["path"].is_string());
    }
    let renewed = told("the token was renewed");
    assert!(!renewed.is_empty() && renewed.iter().all(|line| line["span"]["kms"] == configured));
    let token = fs::read_to_string(place.path("token")).unwrap();
    assert!(!log.contains(&token), "a token is logged");
}
