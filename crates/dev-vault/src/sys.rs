//! The `sys` paths: health, seal, mounts, auth methods, policies, capabilities.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Map, Value, json};

use crate::{
    answer::{Answer, Outcome, Refusal},
    policy::{Acl, Policy},
    request::{Fields, Operation, Request},
    state::{Seal, State},
};

/// The version whose answers this server gives.
pub(crate) const VAULT_VERSION: &str = "1.21.4";

/// Paths that Vault answers whoever asks, sealed or not.
pub(crate) fn handle_without_token(
    state: &mut State,
    path: &[&str],
    request: &Request,
    now: u64,
) -> Option<Outcome> {
    use Operation::{Read, Update};
    let outcome = match (request.operation, path) {
        (Read, ["sys", "health"]) => Ok(health(state, now)),
        (Read, ["sys", "seal-status"]) => Ok(seal_status(state)),
        (Read, ["sys", "leader"]) if state.seal == Seal::Open => {
            Ok(Answer::bare(200, json!({ "ha_enabled": false, "is_self": false })))
        }
        (Read, ["sys", "init"]) => {
            Ok(Answer::bare(200, json!({ "initialized": state.seal != Seal::NotInitialized })))
        }
        (Update, ["sys", "unseal"]) => unseal(state, &request.fields),
        (Update, ["sys", "seal"]) if state.seal == Seal::Sealed => Ok(Answer::nothing()),
        (_, ["sys", "health" | "seal-status" | "init" | "unseal"]) => {
            Err(Refusal::unsupported_operation())
        }
        _ => return None,
    };
    Some(outcome)
}

/// Paths for which Vault wants `sudo` beside the capability itself.
pub(crate) fn needs_sudo(path: &[&str]) -> bool {
    matches!(path, ["sys", "seal"] | ["sys", "auth", _, ..] | ["auth", "token", "create-orphan"])
}

/// Answers below `sys/`; `token` has passed its policies.
pub(crate) fn handle(state: &mut State, token: &str, path: &[&str], request: &Request) -> Outcome {
    use Operation::{Delete, List, Read, Update};
    let fields = &request.fields;
    match (request.operation, path) {
        (Update, ["seal"]) => {
            state.seal = Seal::Sealed;
            Ok(Answer::nothing())
        }
        (Update, ["capabilities-self"]) => capabilities(state, token, fields),
        (Update, ["capabilities"]) => {
            capabilities(state, &fields.string("token")?.unwrap_or_default(), fields)
        }
        (Read, ["mounts"]) => Ok(list_mounts(state)),
        (Read, ["mounts", mount @ ..]) => {
            let path = mount.join("/");
            match state.mounts.0.contains_key(&path) {
                true => Ok(Answer::data_twice(show_mount("transit", ""))),
                false => Err(Refusal::invalid(format!("No secret engine mount at {path}/"))),
            }
        }
        (Update, ["mounts", mount @ ..]) if !mount.is_empty() => mount_engine(state, mount, fields),
        (Delete, ["mounts", mount @ ..]) if !mount.is_empty() => {
            state.mounts.0.remove(&mount.join("/"));
            Ok(Answer::nothing())
        }
        (Read, ["auth"]) => Ok(list_auth(state)),
        (Update, ["auth", mount @ ..]) if !mount.is_empty() => enable_auth(state, mount, fields),
        (Delete, ["auth", mount @ ..]) if !mount.is_empty() => {
            state.app_roles.0.remove(&format!("auth/{}", mount.join("/")));
            Ok(Answer::nothing())
        }
        (List, ["policies", "acl"]) => Ok(Answer::data(json!({ "keys": policy_names(state) }))),
        (List | Read, ["policy"]) => {
            let names = policy_names(state);
            Ok(Answer::data_twice(json!({ "keys": names, "policies": names })))
        }
        (Read, ["policies", "acl", name]) => {
            let text = policy_text(state, name)?;
            Ok(Answer::data(json!({ "name": name.to_lowercase(), "policy": text })))
        }
        (Read, ["policy", name]) => {
            let text = policy_text(state, name)?;
            Ok(Answer::data_twice(json!({ "name": name.to_lowercase(), "rules": text })))
        }
        (Update, ["policies", "acl", name] | ["policy", name]) => write_policy(state, name, fields),
        (Delete, ["policies", "acl", name] | ["policy", name]) => {
            match name.to_lowercase().as_str() {
                "root" => Err(Refusal::invalid("cannot delete \"root\" policy")),
                "default" => Err(Refusal::invalid("cannot delete default policy")),
                name => {
                    state.policies.remove(name);
                    Ok(Answer::nothing())
                }
            }
        }
        (_, ["seal" | "capabilities-self" | "capabilities" | "mounts" | "auth" | "policy", ..])
        | (_, ["policies", "acl", ..]) => Err(Refusal::unsupported_operation()),
        _ => Err(Refusal::unsupported_path()),
    }
}

fn health(state: &State, now: u64) -> Answer {
    let seal = state.seal;
    let status = match seal {
        Seal::Open => 200,
        Seal::Sealed => 503,
        Seal::NotInitialized => 501,
    };
    let mut body = json!({
        "initialized": seal != Seal::NotInitialized,
        "sealed": seal != Seal::Open,
        "standby": seal != Seal::Open,
        "performance_standby": false,
        "replication_performance_mode": "unknown",
        "replication_dr_mode": "unknown",
        "server_time_utc": now,
        "version": VAULT_VERSION,
        "enterprise": false,
        "echo_duration_ms": 0,
        "clock_skew_ms": 0,
        "replication_primary_canary_age_ms": 0,
    });
    if seal == Seal::Open {
        body["replication_performance_mode"] = json!("disabled");
        body["replication_dr_mode"] = json!("disabled");
        body["cluster_name"] = json!(CLUSTER_NAME);
        body["cluster_id"] = json!(state.cluster_id);
    }
    Answer::bare(status, body)
}

const CLUSTER_NAME: &str = "coffer-dev-vault";

fn seal_status(state: &State) -> Answer {
    let seal = state.seal;
    let shares = u8::from(seal != Seal::NotInitialized);
    let mut body = json!({
        "type": "shamir",
        "initialized": seal != Seal::NotInitialized,
        "sealed": seal != Seal::Open,
        "t": shares,
        "n": shares,
        "progress": 0,
        "nonce": "",
        "version": VAULT_VERSION,
        "build_date": "2025-01-01T00:00:00Z",
        "migration": false,
        "recovery_seal": false,
        "storage_type": "inmem",
    });
    if seal == Seal::Open {
        body["cluster_name"] = json!(CLUSTER_NAME);
        body["cluster_id"] = json!(state.cluster_id);
    }
    Answer::bare(200, body)
}

fn unseal(state: &mut State, fields: &Fields) -> Outcome {
    let key = fields.string("key")?.unwrap_or_default();
    if state.seal == Seal::NotInitialized {
        return Err(Refusal::invalid("Vault is not initialized"));
    }
    if key.is_empty() && !fields.flag("reset")?.unwrap_or(false) {
        return Err(Refusal::invalid(
            "'key' must be specified in request body as JSON, or 'reset' set to true",
        ));
    }
    if state.seal == Seal::Sealed && !key.is_empty() {
        if key != state.unseal_key {
            return Err(Refusal::invalid(
                "unable to retrieve stored keys: invalid key: failed to decrypt keys from storage: \
                 error decrypting seal wrapped value\n\
                 error decrypting using seal shamir: cipher: message authentication failed",
            ));
        }
        state.seal = Seal::Open;
    }
    Ok(seal_status(state))
}

fn capabilities(state: &State, token: &str, fields: &Fields) -> Outcome {
    let mut paths = fields.list("paths")?.unwrap_or_default();
    if paths.is_empty() {
        paths = fields.list("path")?.unwrap_or_default();
    }
    if paths.is_empty() {
        return Err(Refusal::invalid("paths must be supplied"));
    }
    let token = state.tokens.get(token).ok_or_else(|| Refusal::invalid("invalid token"))?;
    let acl = Acl::new(token.policies().iter().filter_map(|name| state.policies.get(name)));
    let mut shown = Map::new();
    for path in &paths {
        let granted = acl.capabilities(path.strip_prefix('/').unwrap_or(path));
        let names = if token.is_root() { vec!["root"] } else { granted.names() };
        shown.insert(path.to_owned(), json!(names));
        if paths.len() == 1 {
            shown.insert("capabilities".to_owned(), json!(names));
        }
    }
    Ok(Answer::data_twice(Value::Object(shown)))
}

fn list_mounts(state: &State) -> Answer {
    let mut shown = Map::new();
    for path in state.mounts.0.keys() {
        shown.insert(format!("{path}/"), show_mount("transit", ""));
    }
    shown.insert(
        "sys/".to_owned(),
        show_mount("system", "system endpoints used for control, policy and debugging"),
    );
    Answer::data_twice(Value::Object(shown))
}

fn list_auth(state: &State) -> Answer {
    let mut shown = Map::new();
    for path in state.app_roles.0.keys() {
        let path = path.strip_prefix("auth/").unwrap_or(path);
        shown.insert(format!("{path}/"), show_mount("approle", ""));
    }
    shown.insert("token/".to_owned(), show_mount("token", "token based credentials"));
    Answer::data_twice(Value::Object(shown))
}

fn show_mount(kind: &str, description: &str) -> Value {
    json!({
        "type": kind,
        "description": description,
        "config": { "default_lease_ttl": 0, "max_lease_ttl": 0, "force_no_cache": false },
        "options": null,
        "local": false,
        "seal_wrap": false,
        "external_entropy_access": false,
    })
}

fn mount_engine(state: &mut State, mount: &[&str], fields: &Fields) -> Outcome {
    let path = mount.join("/");
    match fields.string("type")?.as_deref() {
        Some("transit") => {}
        None | Some("") => {
            return Err(Refusal::invalid("backend type must be specified as a string"));
        }
        Some(kind) => {
            return Err(Refusal::invalid(format!(
                "secrets engine {kind:?} is not supported by this development server, which has transit only"
            )));
        }
    }
    if matches!(mount.first(), Some(&("sys" | "auth" | "cubbyhole" | "identity" | "dev"))) {
        return Err(Refusal::invalid(format!("cannot mount \"{path}/\"")));
    }
    if let Some(taken) = state.mounts.in_the_way(&path) {
        return Err(Refusal::invalid(format!("path is already in use at {taken}/")));
    }
    state.mounts.0.insert(path, Default::default());
    Ok(Answer::nothing())
}

fn enable_auth(state: &mut State, mount: &[&str], fields: &Fields) -> Outcome {
    let path = mount.join("/");
    let kind = fields.string("type")?.unwrap_or_default();
    if path == "token" {
        return Err(Refusal::invalid("path is already in use at token/"));
    }
    if kind.is_empty() {
        return Err(Refusal::invalid("backend type must be specified as a string"));
    }
    if kind != "approle" {
        return Err(Refusal::invalid(format!(
            "auth method {kind:?} is not supported by this development server, which has token and approle"
        )));
    }
    let path = format!("auth/{path}");
    if let Some(taken) = state.app_roles.in_the_way(&path) {
        let taken = taken.strip_prefix("auth/").unwrap_or(taken);
        return Err(Refusal::invalid(format!("path is already in use at {taken}/")));
    }
    state.app_roles.0.insert(path, Default::default());
    Ok(Answer::nothing())
}

fn policy_names(state: &State) -> Vec<String> {
    let names = state.policies.keys().cloned();
    names.chain(["root".to_owned()]).collect()
}

fn policy_text(state: &State, name: &str) -> Result<String, Refusal> {
    let name = name.to_lowercase();
    match state.policies.get(&name) {
        Some(policy) => Ok(policy.text().to_owned()),
        None if name == "root" => Ok(String::new()),
        None => Err(Refusal::not_found()),
    }
}

fn write_policy(state: &mut State, name: &str, fields: &Fields) -> Outcome {
    let text = match fields.string("policy")?.filter(|text| !text.is_empty()) {
        Some(text) => text,
        None => fields.string("rules")?.unwrap_or_default(),
    };
    if text.is_empty() {
        return Err(Refusal::invalid("'policy' parameter not supplied or empty"));
    }
    // Policies may come in base64.
    let decoded = BASE64.decode(&text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let policy = Policy::parse(&decoded.unwrap_or(text)).map_err(Refusal::invalid)?;
    let lower = name.to_lowercase();
    if lower == "root" {
        return Err(Refusal::invalid("cannot update \"root\" policy"));
    }
    let warning = (lower != name).then(|| format!("policy name was converted to {lower}"));
    state.policies.insert(lower, policy);
    Ok(Answer::nothing().with_warnings(warning))
}
