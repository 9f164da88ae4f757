//! The states of a KMS that is well, and of one that is not.

use std::collections::BTreeMap;
use std::time::Duration;
use std::{fs, thread};

use coffer_tests::kms::KEY;
use dev_vault::Fault;
use serde_json::json;

use super::tls::Shows;
use super::vault::{OWN, Vault, Way};

pub(crate) struct State {
    /// The heading of its section in `docs/faults.md`.
    pub(crate) name: &'static str,
    /// How many of its cells run at once.
    pub(crate) lanes: usize,
    pub(crate) way: Way,
    /// Which real Vaults can be brought into it, and back.
    pub(crate) real: Real,
    /// Brings a KMS that is well into it.
    pub(crate) begin: fn(&mut Vault),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Real {
    None,
    Newest,
    Each,
}

impl State {
    /// One whose commands are answered at once.
    const fn quick(name: &'static str, begin: fn(&mut Vault)) -> Self {
        Self { name, lanes: 2, way: Way::Token, real: Real::None, begin }
    }

    /// One whose requests are tried again, or waited for.
    const fn waiting(name: &'static str, begin: fn(&mut Vault)) -> Self {
        Self { lanes: 6, ..Self::quick(name, begin) }
    }

    const fn by(self, way: Way) -> Self {
        Self { way, ..self }
    }

    const fn on_real(self, real: Real) -> Self {
        Self { real, ..self }
    }
}

pub(crate) static STATES: [State; 33] = [
    State::quick("Well", |_| {}).on_real(Real::Each),
    State::waiting("Away", Vault::stop),
    State::waiting("Silent", |vault| vault.hang()).on_real(Real::Each),
    State::waiting("Slow", |vault| strike(vault, Fault::Delay { milliseconds: 200 })),
    State::waiting("Slower and slower", |vault| {
        strike(vault, Fault::Drip { bytes: 8, milliseconds: 1, slower_by: 100 });
    }),
    State::waiting("Hangs up", |vault| strike(vault, Fault::Drop)),
    State::quick("Sealed", |vault| {
        vault.ask("PUT", "sys/seal", json!({}));
    })
    .on_real(Real::Newest),
    State::waiting("Limits the rate", |vault| vault.limit_the_rate()).on_real(Real::Newest),
    State::waiting("Fails", |vault| strike(vault, refusal(500, "internal error"))),
    State::waiting("Lags behind", |vault| {
        strike(vault, refusal(412, "required index state not present"))
    }),
    State::quick("Stands by", |vault| {
        let faults = vault.server().faults();
        faults.inject(refusal(473, "").on("sys/health"));
    }),
    State::quick("Stands by for a disaster", |vault| strike(vault, refusal(472, ""))),
    State::quick("Redirects elsewhere", |vault| {
        let headers = [("location".to_owned(), "http://127.0.0.2:8200/v1/x".to_owned())];
        let headers = BTreeMap::from(headers);
        strike(vault, Fault::Status { status: 307, body: String::new(), headers });
    }),
    State::quick("A web page answers", |vault| strike(vault, Fault::Html)),
    State::waiting("Answers cut short", |vault| strike(vault, Fault::Truncate)),
    State::quick("Answers without end", |vault| strike(vault, Fault::Endless)),
    State::quick("Certificate not trusted", |vault| show(vault, Shows::Strange)).by(Way::Tls),
    State::quick("Certificate expired", |vault| show(vault, Shows::Expired)).by(Way::Tls),
    State::quick("Token revoked", |vault| vault.revoke_the_token()).on_real(Real::Each),
    State::quick("Token expired", |vault| vault.expire_the_token()).on_real(Real::Each),
    State::quick("Token file gone", |vault| fs::remove_file(vault.token_file()).unwrap())
        .by(Way::File),
    State::quick("Token file empty", |vault| fs::write(vault.token_file(), "").unwrap())
        .by(Way::File),
    State::quick("Token file unreadable", |vault| {
        // As it is to the node's user; root, as who the tests run, reads every file.
        fs::remove_file(vault.token_file()).unwrap();
        fs::create_dir(vault.token_file()).unwrap();
    })
    .by(Way::File),
    State::quick("Secret id used up", |vault| {
        vault.use_up_the_secret_id();
        vault.end_logins();
    })
    .by(Way::Login)
    .on_real(Real::Each),
    State::quick("Role deleted", |vault| {
        vault.ask("DELETE", "auth/approle/role/node", json!({}));
        vault.end_logins();
    })
    .by(Way::Login)
    .on_real(Real::Each),
    State::quick("May not decrypt", |vault| vault.deny("decrypt")).on_real(Real::Each),
    State::quick("May not encrypt", |vault| vault.deny("encrypt")).on_real(Real::Each),
    State::quick("May not rewrap", |vault| vault.deny("rewrap")).on_real(Real::Each),
    State::quick("Master key deleted", |vault| delete_key(vault, KEY)).on_real(Real::Each),
    State::quick("Own master key deleted", |vault| delete_key(vault, OWN)).on_real(Real::Each),
    State::quick("Master key made anew", |vault| {
        delete_key(vault, KEY);
        // When it was made is told to the second.
        thread::sleep(Duration::from_millis(1100));
        // As many versions as there were.
        vault.ask("POST", &format!("transit/keys/{KEY}"), json!({}));
        vault.ask("POST", &format!("transit/keys/{KEY}/rotate"), json!({}));
    })
    .on_real(Real::Each),
    State::quick("Versions cut off", |vault| {
        let versions = json!({ "min_decryption_version": 2 });
        vault.ask("POST", &format!("transit/keys/{KEY}/config"), versions);
    })
    .on_real(Real::Each),
    State::quick("Transit unmounted", |vault| {
        vault.ask("DELETE", "sys/mounts/transit", json!({}));
    })
    .on_real(Real::Each),
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

fn delete_key(vault: &mut Vault, key: &str) {
    vault.ask("POST", &format!("transit/keys/{key}/config"), json!({ "deletion_allowed": true }));
    vault.ask("DELETE", &format!("transit/keys/{key}"), json!({}));
}
