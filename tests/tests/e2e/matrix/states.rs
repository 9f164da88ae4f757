//! The states of a KMS that is well, and of one that is not.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use coffer_tests::kms::KEY;
use dev_vault::Fault;
use serde_json::json;

use super::tls::Shows;
use super::vault::Vault;

pub(crate) struct State {
    /// The heading of its section in `docs/faults.md`.
    pub(crate) name: &'static str,
    /// How many of its cells run at once.
    pub(crate) lanes: usize,
    pub(crate) with_tls: bool,
    /// Whether a real Vault can be brought into it, and back.
    pub(crate) on_a_real_one: bool,
    /// Brings a KMS that is well into it.
    pub(crate) begin: fn(&mut Vault),
}

/// One whose commands are answered at once.
const fn quick(name: &'static str, begin: fn(&mut Vault)) -> State {
    State { name, lanes: 2, with_tls: false, on_a_real_one: false, begin }
}

/// One whose requests are tried again, or waited for.
const fn waiting(name: &'static str, begin: fn(&mut Vault)) -> State {
    State { lanes: 6, ..quick(name, begin) }
}

/// One that a real Vault can be brought into.
const fn real(name: &'static str, begin: fn(&mut Vault)) -> State {
    State { on_a_real_one: true, ..quick(name, begin) }
}

const fn tls(name: &'static str, begin: fn(&mut Vault)) -> State {
    State { with_tls: true, ..quick(name, begin) }
}

pub(crate) static STATES: [State; 23] = [
    quick("Well", |_| {}),
    waiting("Away", Vault::stop),
    waiting("Silent", |vault| strike(vault, Fault::Delay { milliseconds: 3_600_000 })),
    waiting("Slow", |vault| strike(vault, Fault::Delay { milliseconds: 200 })),
    waiting("Hangs up", |vault| strike(vault, Fault::Drop)),
    real("Sealed", |vault| {
        vault.ask("PUT", "sys/seal", json!({}));
    }),
    waiting("Limits the rate", |vault| {
        strike(vault, refusal(429, "request path \"transit\": rate limit quota exceeded"));
    }),
    waiting("Fails", |vault| strike(vault, refusal(500, "internal error"))),
    quick("Redirects elsewhere", |vault| {
        let headers = [("location".to_owned(), "http://127.0.0.2:8200/v1/x".to_owned())];
        let headers = BTreeMap::from(headers);
        strike(vault, Fault::Status { status: 307, body: String::new(), headers });
    }),
    quick("A web page answers", |vault| strike(vault, Fault::Html)),
    waiting("Answers cut short", |vault| strike(vault, Fault::Truncate)),
    quick("Answers without end", |vault| strike(vault, Fault::Endless)),
    tls("Certificate not trusted", |vault| show(vault, Shows::Strange)),
    tls("Certificate expired", |vault| show(vault, Shows::Expired)),
    real("Token revoked", |vault| {
        vault.ask("POST", "auth/token/revoke", json!({ "token": vault.token }));
    }),
    quick("Token expired", |vault| vault.server().advance(Duration::from_secs(2 * 3600))),
    real("May not decrypt", |vault| vault.deny("decrypt")),
    real("May not encrypt", |vault| vault.deny("encrypt")),
    real("May not rewrap", |vault| vault.deny("rewrap")),
    real("Master key deleted", delete_key),
    real("Master key made anew", |vault| {
        delete_key(vault);
        // When it was made is told to the second.
        thread::sleep(Duration::from_millis(1100));
        // As many versions as there were.
        vault.ask("POST", &format!("transit/keys/{KEY}"), json!({}));
        vault.ask("POST", &format!("transit/keys/{KEY}/rotate"), json!({}));
    }),
    real("Versions cut off", |vault| {
        let versions = json!({ "min_decryption_version": 2 });
        vault.ask("POST", &format!("transit/keys/{KEY}/config"), versions);
    }),
    real("Transit unmounted", |vault| {
        vault.ask("DELETE", "sys/mounts/transit", json!({}));
    }),
];

fn strike(vault: &mut Vault, fault: Fault) {
    vault.server().faults().inject(fault);
}

fn refusal(status: u16, says: &str) -> Fault {
    Fault::Status {
        status,
        body: json!({ "errors": [says] }).to_string(),
        headers: BTreeMap::new(),
    }
}

fn show(vault: &mut Vault, shows: Shows) {
    vault.door.as_ref().unwrap().show(shows);
}

fn delete_key(vault: &mut Vault) {
    vault.ask("POST", &format!("transit/keys/{KEY}/config"), json!({ "deletion_allowed": true }));
    vault.ask("DELETE", &format!("transit/keys/{KEY}"), json!({}));
}
