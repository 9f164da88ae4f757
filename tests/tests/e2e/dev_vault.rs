//! `coffer dev vault` with faults, and a node whose KMS has bad days out of seeds.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coffer_tests::kms::{KEY, Kind, Kms};
use coffer_tests::node::{Place, program};
use dev_vault::{Event, FaultPlan};
use serde_json::{Value, json};
use testkit::tree;
use testkit::vault_server::VaultAdmin;

/// Killed when it is dropped.
struct DevVault {
    child: Child,
    started: Value,
}

impl DevVault {
    fn start(options: &[&str]) -> Self {
        let mut command = Command::new(program());
        command.args(["dev", "vault", "--listen", "127.0.0.1:0", "--root-token", "root", "--json"]);
        let mut child = command.args(options).stdout(Stdio::piped()).spawn().unwrap();
        let said = serde_json::Deserializer::from_reader(child.stdout.take().unwrap());
        let started = said.into_iter().next().unwrap().unwrap();
        Self { child, started }
    }

    /// The statuses that forty reads meet.
    fn day(&self) -> Vec<u16> {
        let admin = VaultAdmin::new(self.started["url"].as_str().unwrap(), "root");
        let path = format!("transit/keys/{KEY}");
        (0..40).map(|_| admin.ask("GET", &path, &json!({})).0).collect()
    }
}

impl Drop for DevVault {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_development_kms_breaks_by_a_plan() {
    let place = Place::new();
    let (plan, bad) = (place.path("plan.json"), place.path("bad.json"));
    let text = json!({
        "seed": 7, "percent": 50, "faults": [{ "fault": "status", "status": 500, "body": "{}" }],
        "events": [{ "after": 30, "event": "seal" }],
    });
    fs::write(&plan, text.to_string()).unwrap();
    let plan = plan.to_str().unwrap();
    let one = DevVault::start(&["--faults", plan]);
    assert_eq!(one.started["fault_seed"], 7);
    let seen = one.day();
    assert_eq!(seen, DevVault::start(&["--faults", plan]).day());
    assert!([200, 500, 503].iter().all(|status| seen.contains(status)), "{seen:?}");
    let other = DevVault::start(&["--faults", plan, "--fault-seed", "8"]);
    assert_eq!(other.started["fault_seed"], 8);
    assert_ne!(seen, other.day());
    assert_eq!(DevVault::start(&["--fault-seed", "9"]).started["fault_seed"], 9);
    let well = DevVault::start(&[]);
    assert_eq!((&well.started["fault_seed"], well.day()), (&Value::Null, vec![200; 40]));

    fs::write(&bad, r#"{"seed": 7, "percents": 50}"#).unwrap();
    let listen = ["dev", "vault", "--listen", "127.0.0.1:0", "--faults"];
    for file in [bad, place.path("none.json")] {
        let file = file.to_str().unwrap();
        let refused = place.fails(2, &[&listen[..], &[file]].concat());
        assert!(refused.contains(&format!("{file} is no plan of faults")), "{refused}");
    }
}

/// Whatever a command was told, what it says is done stays done: nothing is lost, and no command hangs.
#[test]
fn a_node_lives_through_bad_days_of_its_kms() {
    std::thread::scope(|scope| {
        for seed in 0..3 {
            scope.spawn(move || live_through(seed));
        }
    });
}

fn live_through(seed: u64) {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let node = place.start();
    place.set_vault(&kms);
    let source = place.path("source");
    tree::small_files(&source, 3).unwrap();
    let source = source.to_str().unwrap();
    place.ok(&["fs", "create", "home"]);
    place.ok(&["fs", "import", "home", source]);
    let key = || format!("transit/keys/{KEY}");
    let plan = FaultPlan {
        events: vec![
            Event::RotateKey { key: key() }.after(10).within(20),
            Event::Seal.after(40).within(10),
            Event::Unseal.after(60).within(10),
            Event::RotateKey { key: key() }.after(70).within(20),
        ],
        ..FaultPlan::seeded(seed)
    };
    kms.embedded().faults().follow(plan);
    let told = |args: &[&str]| {
        let begun = Instant::now();
        let answer = place.coffer(args);
        assert!(begun.elapsed() < Duration::from_secs(120), "seed {seed}: {answer:?}");
        // 4: the plan says of some wrapped key that it is not authentic; 8: of some, and others are done.
        assert!([0, 3, 4, 5, 8].contains(&answer.code), "seed {seed}: {answer:?}");
        answer.code == 0
    };
    let mut made = vec!["home".to_owned()];
    for n in 0..6 {
        let name = format!("fs-{n}");
        if told(&["fs", "create", &name]) {
            place.ok(&["fs", "import", &name, source]);
            made.push(name.clone());
        }
        told(&["fs", "kms", "rewrap"]);
        told(&["fs", "lock", &name]);
        told(&["fs", "unlock", &name]);
        told(&["fs", "kms", "check"]);
    }
    kms.embedded().faults().clear();
    kms.embedded().happen(&Event::Unseal).unwrap();
    place.ok(&["fs", "kms", "rewrap"]);
    // What was locked by hand stays so over a restart.
    for name in &made {
        place.ok(&["fs", "unlock", name]);
    }
    node.stop();
    let _node = place.start();
    for name in &made {
        place.wait_for_state(name, "unlocked");
        let restored = place.path(&format!("restored-{name}"));
        place.ok(&["fs", "export", name, restored.to_str().unwrap()]);
        assert_eq!(tree::differences(source, &restored).unwrap(), Vec::<String>::new());
    }
    let keys = kms.embedded().admin("LIST", "transit/keys", Value::Null).unwrap();
    assert_eq!(keys["data"]["keys"], json!([KEY]), "seed {seed}");
}
