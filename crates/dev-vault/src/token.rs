//! Tokens (`auth/token/`).
//!
//! Lives are counted in whole seconds, as in Vault. A token dies when its time is up, when it is
//! revoked, when its uses are spent, or with its parent.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    answer::{Answer, Outcome, Refusal},
    clock,
    life::{Life, lesser},
    policy::Policy,
    random,
    request::{Fields, Operation, Request},
    token_role::{Role, choose_policies},
};

/// What a caller of `auth/token/` brings along.
pub(crate) struct Caller<'a> {
    pub(crate) token: &'a str,
    /// Root, or granted `sudo` on the path of the request.
    pub(crate) is_sudo: bool,
    /// The policies that exist: a token may name others, and is told so.
    pub(crate) policies: &'a BTreeMap<String, Policy>,
    pub(crate) now: u64,
}

/// All tokens that live, and the roles.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Tokens {
    by_id: BTreeMap<String, Token>,
    roles: BTreeMap<String, Role>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Token {
    accessor: String,
    created: u64,
    creation_ttl: u64,
    /// `None` lives for ever (root).
    expires: Option<u64>,
    renewed: Option<u64>,
    #[serde(flatten)]
    made: Blueprint,
}

/// What is known of a token before it is made.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Blueprint {
    /// Where it was made.
    pub(crate) path: String,
    pub(crate) display_name: String,
    pub(crate) policies: BTreeSet<String>,
    pub(crate) meta: Value,
    pub(crate) entity_id: String,
    /// Zero for no limit, [`SPENT`] while its last use is under way.
    pub(crate) num_uses: i64,
    /// `None` for an orphan.
    pub(crate) parent: Option<String>,
    pub(crate) role: Option<String>,
    pub(crate) is_renewable: bool,
    pub(crate) life: Life,
    /// `lookup-self` shows the period and the maximum that the token was made with, not those of its role.
    pub(crate) shown_period: u64,
    pub(crate) shown_max_ttl: u64,
}

const SPENT: i64 = -1;

impl Tokens {
    pub(crate) fn insert_root(&mut self, id: &str, now: u64) -> Result<(), Refusal> {
        let blueprint = Blueprint {
            path: "auth/token/create".to_owned(),
            display_name: "token".to_owned(),
            policies: BTreeSet::from(["root".to_owned()]),
            ..Blueprint::default()
        };
        self.insert(id.to_owned(), blueprint, 0, now)?;
        Ok(())
    }

    /// Makes the token of a login.
    pub(crate) fn log_in(
        &mut self,
        blueprint: Blueprint,
        policies: &BTreeMap<String, Policy>,
        now: u64,
    ) -> Outcome {
        let (ttl, mut warnings) = blueprint.life.grant(0, now, now)?;
        warnings.extend(unknown_policies(&blueprint.policies, policies));
        Ok(Answer::auth(self.insert(new_id()?, blueprint, ttl, now)?).with_warnings(warnings))
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Token> {
        self.by_id.get(id)
    }

    /// Removes a token and its children.
    pub(crate) fn remove(&mut self, id: &str) {
        let mut dying = vec![id.to_owned()];
        while let Some(id) = dying.pop() {
            self.by_id.remove(&id);
            let is_child = |token: &Token| token.made.parent.as_deref() == Some(id.as_str());
            let children = self.by_id.iter().filter(|(_, token)| is_child(token));
            dying.extend(children.map(|(id, _)| id.clone()));
        }
    }

    /// Removes what has expired.
    pub(crate) fn sweep(&mut self, now: u64) {
        let is_over = |token: &Token| token.expires.is_some_and(|expires| expires <= now);
        let over = self.by_id.iter().filter(|(_, token)| is_over(token));
        let over: Vec<_> = over.map(|(id, _)| id.clone()).collect();
        for id in over {
            self.remove(&id);
        }
    }

    /// Counts one use. The last one still counts for its request; [`Self::remove_spent`] ends the token after it.
    pub(crate) fn use_once(&mut self, id: &str) {
        if let Some(token) = self.by_id.get_mut(id) {
            token.made.num_uses = match token.made.num_uses {
                0 => 0,
                1 => SPENT,
                left => left - 1,
            };
        }
    }

    pub(crate) fn remove_spent(&mut self, id: &str) {
        if self.by_id.get(id).is_some_and(|token| token.made.num_uses == SPENT) {
            self.remove(id);
        }
    }

    /// For `roles/<name>`: whether it is there, so that a write is a creation or an update.
    pub(crate) fn exists(&self, path: &[&str]) -> Option<bool> {
        match path {
            ["roles", name] => Some(self.roles.contains_key(*name)),
            _ => None,
        }
    }

    /// Answers below `auth/token/`.
    pub(crate) fn handle(
        &mut self,
        caller: &Caller<'_>,
        path: &[&str],
        request: &Request,
    ) -> Outcome {
        use Operation::{Create, Delete, List, Read, Update};
        let fields = &request.fields;
        match (request.operation, path) {
            (Update, ["create"]) => self.create(caller, None, false, fields),
            (Update, ["create-orphan"]) => self.create(caller, None, true, fields),
            (Update, ["create", role]) => self.create(caller, Some(role), false, fields),
            (Read | Update, ["lookup-self"]) => self.look_up(caller.token, caller.now),
            (Read | Update, ["lookup"]) => {
                let asked = fields.string("token")?.filter(|id| !id.is_empty());
                self.look_up(asked.as_deref().unwrap_or(caller.token), caller.now)
            }
            (Update, ["renew-self"]) => self.renew(caller.token, fields, caller.now),
            (Update, ["renew"]) => self.renew(&required_token(fields)?, fields, caller.now),
            (Update, ["revoke-self"]) => {
                self.remove(caller.token);
                Ok(Answer::nothing())
            }
            (Update, ["revoke"]) => {
                self.remove(&required_token(fields)?);
                Ok(Answer::nothing())
            }
            (Create | Update, ["roles", name]) => {
                let mut role = self.roles.get(*name).cloned().unwrap_or_default();
                let warnings = role.configure(fields)?;
                self.roles.insert((*name).to_owned(), role);
                Ok(Answer::nothing().with_warnings(warnings))
            }
            (Read, ["roles", name]) => match self.roles.get(*name) {
                Some(role) => Ok(Answer::data(role.show(name))),
                None => Err(Refusal::not_found()),
            },
            (Delete, ["roles", name]) => {
                self.roles.remove(*name);
                Ok(Answer::nothing())
            }
            (List, ["roles"]) => Answer::list(self.roles.keys()),
            (
                _,
                ["create" | "create-orphan" | "lookup" | "lookup-self" | "renew" | "renew-self"],
            )
            | (_, ["revoke" | "revoke-self" | "roles"] | ["create" | "roles", _]) => {
                Err(Refusal::unsupported_operation())
            }
            _ => Err(Refusal::unsupported_path()),
        }
    }

    fn create(
        &mut self,
        caller: &Caller<'_>,
        role_name: Option<&str>,
        to_orphan: bool,
        fields: &Fields,
    ) -> Outcome {
        fields.refuse(&["entity_alias"])?;
        match fields.string("type")?.as_deref() {
            None | Some("" | "service") => {}
            Some("batch") => {
                return Err(Refusal::invalid(
                    "batch tokens are not supported by this development server; use type=service",
                ));
            }
            Some(_) => return Err(Refusal::invalid("invalid 'token_type' value")),
        }
        let parent = self.by_id.get(caller.token).ok_or_else(Refusal::bad_token)?;
        if parent.made.num_uses != 0 {
            return Err(Refusal::invalid("restricted use token cannot generate child tokens"));
        }
        let unknown = |name| Refusal::invalid(format!("unknown role {name}"));
        let role =
            role_name.map(|name| self.roles.get(name).ok_or_else(|| unknown(name))).transpose()?;
        let needs_sudo = |what: &str| match caller.is_sudo {
            true => Ok(()),
            false => Err(Refusal::invalid(format!("root or sudo privileges required to {what}"))),
        };
        let mut warnings = Vec::new();

        let policies = choose_policies(&parent.made.policies, caller.is_sudo, role, fields)?;
        let is_root = policies.contains("root");
        if is_root && !parent.is_root() {
            return Err(Refusal::invalid(
                "root tokens may not be created without parent token being root",
            ));
        }
        let is_orphan = match role {
            Some(role) => role.orphan,
            None if fields.flag("no_parent")?.unwrap_or(false) => {
                needs_sudo("create orphan token")?;
                true
            }
            None => to_orphan,
        };
        let id = match fields.string("id")?.filter(|id| !id.is_empty()) {
            None => new_id()?,
            Some(id) => {
                needs_sudo("specify token id")?;
                if self.by_id.contains_key(&id) {
                    return Err(Refusal::invalid("cannot create a token with a duplicate ID"));
                }
                warnings.push(CUSTOM_ID.to_owned());
                id
            }
        };

        let shown_period = fields.seconds("period")?.unwrap_or(0);
        if shown_period > 0 {
            needs_sudo("create periodic token")?;
        }
        let shown_max_ttl = fields.seconds("explicit_max_ttl")?.unwrap_or(0);
        let mut num_uses = fields.integer("num_uses")?.unwrap_or(0);
        if num_uses < 0 {
            return Err(Refusal::invalid("number of uses cannot be negative"));
        }
        let mut life = Life {
            ttl: fields.seconds("ttl")?.unwrap_or(0),
            period: shown_period,
            max_ttl: 0,
            explicit_max_ttl: shown_max_ttl,
        };
        if let Some(role) = role {
            let mut lesser_of_both = |what: &str, asked: u64, of_role: u64| {
                let value = lesser(asked, of_role);
                if asked > 0 && of_role > 0 {
                    warnings.push(format!(
                        "{what} specified both during creation call and in role; using the lesser value of {value} seconds"
                    ));
                }
                value
            };
            life.explicit_max_ttl = lesser_of_both(
                "Explicit max TTL",
                life.explicit_max_ttl,
                role.token_explicit_max_ttl,
            );
            life.period = lesser_of_both("Period", life.period, role.token_period);
            num_uses = match (num_uses, role.token_num_uses) {
                (uses, 0) | (0, uses) => uses,
                (asked, limit) => asked.min(limit),
            };
        }
        let ttl = if is_root && life.period == 0 && life.ttl == 0 {
            life.explicit_max_ttl
        } else {
            let (ttl, capped) = life.grant(0, caller.now, caller.now)?;
            warnings.extend(capped);
            ttl
        };
        if ttl == 0 && parent.expires.is_some() {
            return Err(Refusal::invalid(
                "expiring root tokens cannot create non-expiring root tokens",
            ));
        }

        let mut path = vec!["auth/token", if to_orphan { "create-orphan" } else { "create" }];
        path.extend(role_name);
        path.extend(role.map(|role| role.path_suffix.as_str()).filter(|suffix| !suffix.is_empty()));
        let is_renewable = ttl > 0
            && fields.flag("renewable")?.unwrap_or(true)
            && role.is_none_or(|role| role.renewable);
        warnings.extend(unknown_policies(&policies, caller.policies));
        let blueprint = Blueprint {
            path: path.join("/"),
            display_name: display_name(fields.string("display_name")?.as_deref()),
            policies,
            meta: fields.raw("meta").cloned().unwrap_or_default(),
            entity_id: String::new(),
            num_uses,
            parent: (!is_orphan).then(|| caller.token.to_owned()),
            role: role_name.map(str::to_owned),
            is_renewable,
            life,
            shown_period,
            shown_max_ttl,
        };
        Ok(Answer::auth(self.insert(id, blueprint, ttl, caller.now)?).with_warnings(warnings))
    }

    /// Gives what its owner is told. A `ttl` of zero lives for ever.
    fn insert(
        &mut self,
        id: String,
        made: Blueprint,
        ttl: u64,
        now: u64,
    ) -> Result<Value, Refusal> {
        let token = Token {
            accessor: random::alphanumeric(24)?,
            created: now,
            creation_ttl: ttl,
            expires: (ttl > 0).then(|| now.saturating_add(ttl)),
            renewed: None,
            made,
        };
        let auth = token.auth(&id, ttl);
        self.by_id.insert(id, token);
        Ok(auth)
    }

    fn look_up(&self, id: &str, now: u64) -> Outcome {
        let token = self.by_id.get(id).ok_or_else(|| Refusal::new(403, "bad token"))?;
        Ok(Answer::data(token.show(id, now)))
    }

    fn renew(&mut self, id: &str, fields: &Fields, now: u64) -> Outcome {
        let increment = fields.seconds("increment")?.unwrap_or(0);
        let token = self.by_id.get_mut(id).filter(|token| token.made.num_uses != SPENT);
        let token = token.ok_or_else(|| Refusal::invalid("token not found"))?;
        if !token.made.is_renewable {
            return Err(Refusal::invalid("lease is not renewable"));
        }
        // The role counts as it is now, not as it was when the token was made.
        let mut life = token.made.life;
        if let Some(name) = &token.made.role {
            let role = self.roles.get(name).ok_or_else(|| {
                Refusal::internal(&format!(
                    "original token role {name:?} could not be found, not renewing"
                ))
            })?;
            life.period = role.token_period;
            life.explicit_max_ttl = role.token_explicit_max_ttl;
        }
        let (ttl, warnings) = life.grant(increment, token.created, now)?;
        token.expires = Some(now.saturating_add(ttl));
        token.renewed = Some(now);
        Ok(Answer::auth(token.auth(id, ttl)).with_warnings(warnings))
    }
}

const CUSTOM_ID: &str = "Supplying a custom ID for the token uses the weaker SHA1 hashing instead of the \
    more secure SHA2-256 HMAC for token obfuscation. SHA1 hashed tokens on the wire leads to less \
    secure lookups.";

impl Token {
    pub(crate) fn is_root(&self) -> bool {
        self.made.policies.contains("root")
    }

    pub(crate) fn policies(&self) -> &BTreeSet<String> {
        &self.made.policies
    }

    fn auth(&self, id: &str, ttl: u64) -> Value {
        json!({
            "client_token": id,
            "accessor": self.accessor,
            "policies": self.made.policies,
            "token_policies": self.made.policies,
            "metadata": self.made.meta,
            "lease_duration": ttl,
            "renewable": self.made.is_renewable,
            "entity_id": self.made.entity_id,
            "token_type": "service",
            "orphan": self.made.parent.is_none(),
            "mfa_requirement": null,
            "num_uses": self.made.num_uses,
        })
    }

    fn show(&self, id: &str, now: u64) -> Value {
        let mut shown = json!({
            "id": id,
            "accessor": self.accessor,
            "policies": self.made.policies,
            "path": self.made.path,
            "meta": self.made.meta,
            "display_name": self.made.display_name,
            "num_uses": self.made.num_uses,
            "orphan": self.made.parent.is_none(),
            "renewable": self.made.is_renewable,
            "creation_time": self.created,
            "creation_ttl": self.creation_ttl,
            "issue_time": clock::rfc3339(self.created),
            "expire_time": self.expires.map(clock::rfc3339),
            "ttl": self.expires.map_or(0, |expires| expires.saturating_sub(now)),
            "explicit_max_ttl": self.made.shown_max_ttl,
            "entity_id": self.made.entity_id,
            "type": "service",
        });
        if let Some(role) = &self.made.role {
            shown["role"] = json!(role);
        }
        if self.made.shown_period > 0 {
            shown["period"] = json!(self.made.shown_period);
        }
        if let Some(renewed) = self.renewed {
            shown["last_renewal"] = json!(clock::rfc3339(renewed));
            shown["last_renewal_time"] = json!(renewed);
        }
        shown
    }
}

/// As long as a real service token of Vault 1.10 and later, with its prefix.
pub(crate) fn new_id() -> Result<String, Refusal> {
    Ok(format!("hvs.{}", random::alphanumeric(91)?))
}

fn unknown_policies<'a>(
    named: &'a BTreeSet<String>,
    known: &'a BTreeMap<String, Policy>,
) -> impl Iterator<Item = String> {
    let unknown = named.iter().filter(|name| *name != "root" && !known.contains_key(*name));
    unknown.map(|name| format!("Policy {name:?} does not exist"))
}

fn required_token(fields: &Fields) -> Result<String, Refusal> {
    let token = fields.string("token")?.filter(|token| !token.is_empty());
    token.ok_or_else(|| Refusal::invalid("missing token ID"))
}

fn display_name(asked: Option<&str>) -> String {
    match asked.filter(|name| !name.is_empty()) {
        None => "token".to_owned(),
        Some(name) => {
            let clean = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
            let name: String = name.chars().map(clean).collect();
            format!("token-{}", name.trim_end_matches('-'))
        }
    }
}
