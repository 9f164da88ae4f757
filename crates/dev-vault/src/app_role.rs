//! The AppRole auth method: role ids and secret ids, and the login with them.
//!
//! Paths and answers as in <https://developer.hashicorp.com/vault/api-docs/auth/approle>.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    answer::{Answer, Outcome, Refusal},
    clock,
    life::{Life, SYSTEM_TTL},
    policy::Policy,
    request::{Fields, Operation, Request},
    token::{Blueprint, Tokens},
    token_role::sanitize,
    transit::is_name,
};

/// One mount of the method.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct AppRole {
    roles: BTreeMap<String, Role>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Role {
    role_id: String,
    /// Vault's identity store makes one for each role that logs in.
    entity_id: String,
    secret_ids: BTreeMap<String, SecretId>,
    bind_secret_id: bool,
    secret_id_ttl: u64,
    secret_id_num_uses: i64,
    policies: BTreeSet<String>,
    no_default_policy: bool,
    num_uses: i64,
    life: Life,
}

#[derive(Clone, Serialize, Deserialize)]
struct SecretId {
    accessor: String,
    /// Zero for no limit.
    uses_left: i64,
    #[serde(default)]
    created: u64,
    /// When it was made, or last used.
    #[serde(default)]
    updated: u64,
    /// `None` lives for ever.
    expires: Option<u64>,
}

impl AppRole {
    /// For `role/<name>`: whether it is there, so that a write is a creation or an update.
    pub(crate) fn exists(&self, path: &[&str]) -> Option<bool> {
        match path {
            ["role", name] => Some(self.roles.contains_key(*name)),
            _ => None,
        }
    }

    /// Answers below the mount, but for the login.
    pub(crate) fn handle(&mut self, path: &[&str], request: &Request, now: u64) -> Outcome {
        use Operation::{Create, Delete, List, Read, Update};
        let fields = &request.fields;
        if let ["role", name, ..] = path
            && !is_name(name)
        {
            return Err(Refusal::unsupported_path());
        }
        match (request.operation, path) {
            (List, ["role"]) => Answer::list(self.roles.keys()),
            (Create | Update, ["role", name]) => {
                let role = match self.roles.get(*name) {
                    Some(role) => role.clone(),
                    None => Role::new(),
                };
                self.roles.insert((*name).to_owned(), role.configured(fields)?);
                Ok(Answer::nothing())
            }
            (Read, ["role", name]) => Ok(Answer::data(self.role(name)?.show())),
            (Delete, ["role", name]) => {
                self.roles.remove(*name);
                Ok(Answer::nothing())
            }
            (Read, ["role", name, "role-id"]) => {
                Ok(Answer::data(json!({ "role_id": self.role(name)?.role_id })))
            }
            (Update, ["role", name, "role-id"]) => {
                let given = fields.string("role_id")?.filter(|id| !id.is_empty());
                let given = given.ok_or_else(|| Refusal::invalid("missing role_id"))?;
                self.role_mut(name)?.role_id = given;
                Ok(Answer::nothing())
            }
            (Update, ["role", name, "secret-id"]) => {
                fields.refuse(&["cidr_list", "token_bound_cidrs", "metadata"])?;
                Ok(Answer::data(self.role_mut(name)?.new_secret_id(fields, now)?))
            }
            (Update, ["role", name, "secret-id", "lookup"]) => {
                let id = fields.string("secret_id")?.filter(|id| !id.is_empty());
                let id = id.ok_or_else(|| Refusal::invalid("missing secret_id"))?;
                let no_role = || Refusal::internal(&format!("role {name:?} does not exist"));
                let role = self.roles.get(*name).ok_or_else(no_role)?;
                // One that has expired is shown until Vault tidies up.
                let shown = role.secret_ids.get(&id).map(SecretId::show);
                Ok(shown.map_or_else(Answer::nothing, Answer::data))
            }
            (Update, ["role", name, "secret-id", "destroy"]) => {
                let id = fields.string("secret_id")?.unwrap_or_default();
                self.role_mut(name)?.secret_ids.remove(&id);
                Ok(Answer::nothing())
            }
            (_, ["login"] | ["role"] | ["role", _] | ["role", _, "role-id" | "secret-id"])
            | (_, ["role", _, "secret-id", "destroy" | "lookup"]) => {
                Err(Refusal::unsupported_operation())
            }
            _ => Err(Refusal::unsupported_path()),
        }
    }

    /// Answers `login`, for which no token is needed.
    pub(crate) fn login(
        &mut self,
        request: &Request,
        tokens: &mut Tokens,
        policies: &BTreeMap<String, Policy>,
        now: u64,
    ) -> Outcome {
        if request.operation != Operation::Update {
            return Err(Refusal::unsupported_operation());
        }
        let role_id = request.fields.string("role_id")?.filter(|id| !id.is_empty());
        let no_role = || Refusal::new(500, "failed to determine alias name from login request");
        let role_id = role_id.ok_or_else(no_role)?;
        let secret_id = request.fields.string("secret_id")?.unwrap_or_default();
        let wrong = || Refusal::invalid("invalid role or secret ID");
        let (name, role) =
            self.roles.iter_mut().find(|(_, role)| role.role_id == role_id).ok_or_else(wrong)?;
        if role.bind_secret_id {
            if secret_id.is_empty() {
                return Err(Refusal::invalid("missing secret_id"));
            }
            role.use_secret_id(&secret_id, now).ok_or_else(wrong)?;
        }
        let mut granted = role.policies.clone();
        if !role.no_default_policy {
            granted.insert("default".to_owned());
        }
        let blueprint = Blueprint {
            path: request.path.clone(),
            display_name: "approle".to_owned(),
            entity_id: role.entity_id.clone(),
            policies: granted,
            meta: json!({ "role_name": name }),
            num_uses: role.num_uses,
            parent: None,
            role: None,
            is_renewable: true,
            life: role.life,
            shown_period: role.life.period,
            shown_max_ttl: role.life.explicit_max_ttl,
        };
        tokens.log_in(blueprint, policies, now)
    }

    fn role(&self, name: &str) -> Result<&Role, Refusal> {
        self.roles.get(name).ok_or_else(Refusal::not_found)
    }

    fn role_mut(&mut self, name: &str) -> Result<&mut Role, Refusal> {
        self.roles
            .get_mut(name)
            .ok_or_else(|| Refusal::new(404, format!("role {name:?} does not exist")))
    }
}

impl Role {
    fn new() -> Self {
        Self {
            role_id: Uuid::new_v4().to_string(),
            entity_id: Uuid::new_v4().to_string(),
            secret_ids: BTreeMap::new(),
            bind_secret_id: true,
            secret_id_ttl: 0,
            secret_id_num_uses: 0,
            policies: BTreeSet::new(),
            no_default_policy: false,
            num_uses: 0,
            life: Life::default(),
        }
    }

    fn configured(mut self, fields: &Fields) -> Result<Self, Refusal> {
        fields.refuse(&["secret_id_bound_cidrs", "token_bound_cidrs", "local_secret_ids"])?;
        if fields.string("token_type")?.is_some_and(|kind| kind.contains("batch")) {
            return Err(Refusal::invalid(
                "batch tokens are not supported by this development server; use token_type=service",
            ));
        }
        // The names without `token_` are the older ones.
        if let Some(names) = fields.list("token_policies")?.or(fields.list("policies")?) {
            self.policies = sanitize(names);
        }
        let seconds = |new: &str, old: &str, now: u64| {
            Ok(fields.seconds(new)?.or(fields.seconds(old)?).unwrap_or(now))
        };
        self.life.ttl = seconds("token_ttl", "ttl", self.life.ttl)?;
        self.life.max_ttl = seconds("token_max_ttl", "max_ttl", self.life.max_ttl)?;
        self.life.period = seconds("token_period", "period", self.life.period)?;
        self.life.explicit_max_ttl =
            seconds("token_explicit_max_ttl", "explicit_max_ttl", self.life.explicit_max_ttl)?;
        self.secret_id_ttl = fields.seconds("secret_id_ttl")?.unwrap_or(self.secret_id_ttl);
        self.secret_id_num_uses =
            fields.integer("secret_id_num_uses")?.unwrap_or(self.secret_id_num_uses).max(0);
        self.num_uses = fields.integer("token_num_uses")?.unwrap_or(self.num_uses).max(0);
        self.bind_secret_id = fields.flag("bind_secret_id")?.unwrap_or(self.bind_secret_id);
        self.no_default_policy =
            fields.flag("token_no_default_policy")?.unwrap_or(self.no_default_policy);
        if self.life.max_ttl > 0 && self.life.ttl > self.life.max_ttl {
            return Err(Refusal::invalid("'token_ttl' cannot be greater than 'token_max_ttl'"));
        }
        if self.life.period > SYSTEM_TTL {
            return Err(Refusal::invalid(format!(
                "period of {} is greater than the backend's maximum lease TTL of {SYSTEM_TTL}",
                self.life.period
            )));
        }
        Ok(self)
    }

    fn new_secret_id(&mut self, fields: &Fields, now: u64) -> Result<Value, Refusal> {
        if !self.bind_secret_id {
            return Err(Refusal::invalid("bind_secret_id is not set on the role"));
        }
        let ttl = fields.seconds("ttl")?.unwrap_or(self.secret_id_ttl);
        let num_uses = fields.integer("num_uses")?.unwrap_or(self.secret_id_num_uses).max(0);
        let id = Uuid::new_v4().to_string();
        let accessor = Uuid::new_v4().to_string();
        let shown = json!({
            "secret_id": id,
            "secret_id_accessor": accessor,
            "secret_id_ttl": ttl,
            "secret_id_num_uses": num_uses,
        });
        let expires = (ttl > 0).then(|| now.saturating_add(ttl));
        let (created, updated) = (now, now);
        let made = SecretId { accessor, uses_left: num_uses, created, updated, expires };
        self.secret_ids.insert(id, made);
        Ok(shown)
    }

    /// `None` if there is no such secret id, or no more.
    fn use_secret_id(&mut self, id: &str, now: u64) -> Option<()> {
        self.secret_ids.retain(|_, secret| secret.expires.is_none_or(|expires| expires > now));
        let secret = self.secret_ids.get_mut(id)?;
        secret.updated = now;
        match secret.uses_left {
            0 => {}
            1 => {
                self.secret_ids.remove(id);
            }
            _ => secret.uses_left -= 1,
        }
        Some(())
    }

    fn show(&self) -> Value {
        json!({
            "bind_secret_id": self.bind_secret_id,
            "local_secret_ids": false,
            "secret_id_bound_cidrs": null,
            "secret_id_num_uses": self.secret_id_num_uses,
            "secret_id_ttl": self.secret_id_ttl,
            "token_bound_cidrs": [],
            "token_explicit_max_ttl": self.life.explicit_max_ttl,
            "token_max_ttl": self.life.max_ttl,
            "token_no_default_policy": self.no_default_policy,
            "token_num_uses": self.num_uses,
            "token_period": self.life.period,
            "token_policies": self.policies,
            "token_ttl": self.life.ttl,
            "token_type": "default",
        })
    }
}

impl SecretId {
    fn show(&self) -> Value {
        // Go's first moment stands for never.
        let ends = self.expires.map_or("0001-01-01T00:00:00Z".to_owned(), clock::rfc3339);
        json!({
            "cidr_list": [],
            "creation_time": clock::rfc3339(self.created),
            "expiration_time": ends,
            "last_updated_time": clock::rfc3339(self.updated),
            "metadata": {},
            "secret_id_accessor": self.accessor,
            "secret_id_num_uses": self.uses_left,
            "secret_id_ttl": self.expires.map_or(0, |expires| expires.saturating_sub(self.created)),
            "token_bound_cidrs": [],
        })
    }
}
