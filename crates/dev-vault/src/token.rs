//! Tokens: their making, their lives, and the roles that shape them (`auth/token/`).
//!
//! Lives are counted in whole seconds, as in Vault. A token dies when its time is up, when it is
//! revoked, when its uses are spent, or with its parent.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    answer::{Answer, Outcome, Refusal},
    clock,
    policy::Policy,
    random,
    request::{Fields, Operation, Request},
};

/// Vault's default for `default_lease_ttl` and `max_lease_ttl`: 32 days.
pub(crate) const SYSTEM_TTL: u64 = 768 * 3600;

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

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Token {
    accessor: String,
    pub(crate) policies: BTreeSet<String>,
    path: String,
    display_name: String,
    meta: Value,
    /// Zero for no limit.
    num_uses: i64,
    /// `None` for an orphan.
    parent: Option<String>,
    role: Option<String>,
    created: u64,
    creation_ttl: u64,
    life: Life,
    is_renewable: bool,
    /// What the token itself was given: `lookup-self` shows these, and not what comes from a token role.
    shown_period: u64,
    shown_max_ttl: u64,
    /// `None` lives for ever (root).
    expires: Option<u64>,
    renewed: Option<u64>,
}

/// How long a token lives, and can be made to live, in seconds; zero for unset.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Life {
    pub(crate) ttl: u64,
    pub(crate) period: u64,
    pub(crate) max_ttl: u64,
    pub(crate) explicit_max_ttl: u64,
}

/// A token to be made by a login.
pub(crate) struct Login {
    pub(crate) path: String,
    pub(crate) display_name: String,
    pub(crate) policies: BTreeSet<String>,
    pub(crate) meta: Value,
    pub(crate) num_uses: i64,
    pub(crate) life: Life,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Role {
    allowed_policies: BTreeSet<String>,
    disallowed_policies: BTreeSet<String>,
    orphan: bool,
    renewable: bool,
    path_suffix: String,
    token_no_default_policy: bool,
    token_num_uses: i64,
    /// The old names of `token_period` and `token_explicit_max_ttl` are shown as they were set.
    period: u64,
    token_period: u64,
    explicit_max_ttl: u64,
    token_explicit_max_ttl: u64,
}

impl Tokens {
    pub(crate) fn insert_root(&mut self, id: &str, now: u64) -> Result<(), Refusal> {
        let root = Token {
            accessor: random::alphanumeric(24)?,
            policies: BTreeSet::from(["root".to_owned()]),
            path: "auth/token/root".to_owned(),
            display_name: "root".to_owned(),
            meta: Value::Null,
            num_uses: 0,
            parent: None,
            role: None,
            created: now,
            creation_ttl: 0,
            life: Life::default(),
            is_renewable: false,
            shown_period: 0,
            shown_max_ttl: 0,
            expires: None,
            renewed: None,
        };
        self.by_id.insert(id.to_owned(), root);
        Ok(())
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Token> {
        self.by_id.get(id)
    }

    pub(crate) fn remove(&mut self, id: &str) {
        let Some(_) = self.by_id.remove(id) else { return };
        let children = self.by_id.iter().filter(|(_, token)| token.parent.as_deref() == Some(id));
        let children: Vec<_> = children.map(|(id, _)| id.clone()).collect();
        for child in children {
            self.remove(&child);
        }
    }

    /// Removes what has expired, and says whether that was anything.
    pub(crate) fn sweep(&mut self, now: u64) -> bool {
        let is_over = |token: &Token| token.expires.is_some_and(|expires| expires <= now);
        let over = self.by_id.iter().filter(|(_, token)| is_over(token));
        let over: Vec<_> = over.map(|(id, _)| id.clone()).collect();
        for id in &over {
            self.remove(id);
        }
        !over.is_empty()
    }

    /// Counts one use, and says whether there was anything to count. The last use still counts for its request:
    /// the token is removed after it, by [`Self::remove_spent`].
    pub(crate) fn use_once(&mut self, id: &str) -> bool {
        match self.by_id.get_mut(id) {
            Some(token) if token.num_uses > 0 => {
                token.num_uses = if token.num_uses == 1 { SPENT } else { token.num_uses - 1 };
                true
            }
            _ => false,
        }
    }

    pub(crate) fn remove_spent(&mut self, id: &str) {
        if self.by_id.get(id).is_some_and(|token| token.num_uses == SPENT) {
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
            (Read | Update, ["lookup-self"]) => self.lookup(caller, caller.token),
            (Read | Update, ["lookup"]) => {
                let asked = fields.string("token")?.filter(|id| !id.is_empty());
                self.lookup(caller, asked.as_deref().unwrap_or(caller.token))
            }
            (Update, ["renew-self"]) => self.renew(caller, caller.token, fields),
            (Update, ["renew"]) => self.renew(caller, &required_token(fields)?, fields),
            (Update, ["revoke-self"]) => {
                self.remove(caller.token);
                Ok(Answer::nothing())
            }
            (Update, ["revoke"]) => {
                self.remove(&required_token(fields)?);
                Ok(Answer::nothing())
            }
            (Create | Update, ["roles", name]) => self.write_role(name, fields),
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
        orphan: bool,
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
        if parent.num_uses != 0 {
            return Err(Refusal::invalid("restricted use token cannot generate child tokens"));
        }
        let role = match role_name {
            None => None,
            Some(name) => Some(
                self.roles
                    .get(name)
                    .ok_or_else(|| Refusal::invalid(format!("unknown role {name}")))?,
            ),
        };
        let needs_sudo = |what: &str| match caller.is_sudo {
            true => Ok(()),
            false => Err(Refusal::invalid(format!("root or sudo privileges required to {what}"))),
        };

        let policies = choose_policies(caller, parent, role, fields)?;
        let is_root = policies.contains("root");
        if is_root && !parent.policies.contains("root") {
            return Err(Refusal::invalid(
                "root tokens may not be created without parent token being root",
            ));
        }
        let no_parent = fields.flag("no_parent")?.unwrap_or(false);
        let is_orphan = match role {
            Some(role) => role.orphan,
            None if no_parent => needs_sudo("create orphan token").map(|()| true)?,
            None => orphan,
        };
        let id = match fields.string("id")?.filter(|id| !id.is_empty()) {
            None => new_id()?,
            Some(id) => needs_sudo("specify token id").map(|()| id)?,
        };
        if self.by_id.contains_key(&id) {
            return Err(Refusal::invalid("cannot create a token with a duplicate ID"));
        }

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
            life.period = lesser(life.period, role.token_period);
            life.explicit_max_ttl = lesser(life.explicit_max_ttl, role.token_explicit_max_ttl);
            num_uses = match (num_uses, role.token_num_uses) {
                (asked, 0) => asked,
                (0, limit) => limit,
                (asked, limit) => asked.min(limit),
            };
        }

        let mut warnings = Vec::new();
        let for_ever = is_root && life.period == 0 && life.ttl == 0;
        let ttl = if for_ever {
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
        let renewable =
            fields.flag("renewable")?.unwrap_or(true) && role.is_none_or(|role| role.renewable);
        let mut path = "auth/token/create".to_owned();
        if orphan {
            path.push_str("-orphan");
        }
        let suffix = role.map(|role| role.path_suffix.as_str()).filter(|suffix| !suffix.is_empty());
        for part in [role_name, suffix].into_iter().flatten() {
            path.push('/');
            path.push_str(part);
        }
        let token = Token {
            accessor: random::alphanumeric(24)?,
            policies,
            path,
            display_name: display_name(fields.string("display_name")?.as_deref()),
            meta: fields.raw("meta").cloned().unwrap_or(Value::Null),
            num_uses,
            parent: (!is_orphan).then(|| caller.token.to_owned()),
            role: role_name.map(str::to_owned),
            created: caller.now,
            creation_ttl: ttl,
            life,
            is_renewable: renewable && ttl > 0,
            shown_period,
            shown_max_ttl,
            expires: (ttl > 0).then_some(caller.now.saturating_add(ttl)),
            renewed: None,
        };
        let unknown = token
            .policies
            .iter()
            .filter(|name| *name != "root" && !caller.policies.contains_key(*name));
        warnings.extend(unknown.map(|name| format!("Policy {name:?} does not exist")));
        let auth = token.auth(&id, ttl);
        self.by_id.insert(id, token);
        Ok(Answer::auth(auth).with_warnings(warnings))
    }

    /// Makes the token of a login: an orphan that can be renewed.
    pub(crate) fn login(
        &mut self,
        login: Login,
        policies: &BTreeMap<String, Policy>,
        now: u64,
    ) -> Outcome {
        let (ttl, mut warnings) = login.life.grant(0, now, now)?;
        let id = new_id()?;
        let token = Token {
            accessor: random::alphanumeric(24)?,
            policies: login.policies,
            path: login.path,
            display_name: login.display_name,
            meta: login.meta,
            num_uses: login.num_uses,
            parent: None,
            role: None,
            created: now,
            creation_ttl: ttl,
            life: login.life,
            is_renewable: true,
            shown_period: login.life.period,
            shown_max_ttl: login.life.explicit_max_ttl,
            expires: Some(now.saturating_add(ttl)),
            renewed: None,
        };
        let unknown = token.policies.iter().filter(|name| !policies.contains_key(*name));
        warnings.extend(unknown.map(|name| format!("Policy {name:?} does not exist")));
        let auth = token.auth(&id, ttl);
        self.by_id.insert(id, token);
        Ok(Answer::auth(auth).with_warnings(warnings))
    }

    fn lookup(&self, caller: &Caller<'_>, id: &str) -> Outcome {
        let token = self.by_id.get(id).ok_or_else(|| Refusal::new(403, "bad token"))?;
        Ok(Answer::data(token.show(id, caller.now)))
    }

    fn renew(&mut self, caller: &Caller<'_>, id: &str, fields: &Fields) -> Outcome {
        let increment = fields.seconds("increment")?.unwrap_or(0);
        let token = self.by_id.get_mut(id).ok_or_else(|| Refusal::invalid("token not found"))?;
        if token.expires.is_none() {
            return Err(Refusal::invalid("invalid lease ID"));
        }
        if !token.is_renewable {
            return Err(Refusal::invalid("lease is not renewable"));
        }
        // The role counts as it is now, not as it was when the token was made.
        let mut life = token.life;
        if let Some(name) = &token.role {
            let role = self.roles.get(name).ok_or_else(|| {
                Refusal::internal(&format!(
                    "original token role {name:?} could not be found, not renewing"
                ))
            })?;
            life.period = role.token_period;
            life.explicit_max_ttl = role.token_explicit_max_ttl;
        }
        let (ttl, warnings) = life.grant(increment, token.created, caller.now)?;
        token.expires = Some(caller.now.saturating_add(ttl));
        token.renewed = Some(caller.now);
        Ok(Answer::auth(token.auth(id, ttl)).with_warnings(warnings))
    }

    fn write_role(&mut self, name: &str, fields: &Fields) -> Outcome {
        fields.refuse(&[
            "allowed_policies_glob",
            "disallowed_policies_glob",
            "allowed_entity_aliases",
            "token_bound_cidrs",
            "bound_cidrs",
        ])?;
        match fields.string("token_type")?.as_deref() {
            None | Some("service" | "default-service") => {}
            Some(kind) => {
                return Err(Refusal::invalid(format!(
                    "token_type {kind:?} is not supported by this development server; use service"
                )));
            }
        }
        let mut role = self
            .roles
            .get(name)
            .cloned()
            .unwrap_or_else(|| Role { renewable: true, ..Role::default() });
        if let Some(allowed) = fields.list("allowed_policies")? {
            role.allowed_policies = sanitize(allowed);
        }
        if let Some(disallowed) = fields.list("disallowed_policies")? {
            role.disallowed_policies = sanitize(disallowed);
        }
        role.orphan = fields.flag("orphan")?.unwrap_or(role.orphan);
        role.renewable = fields.flag("renewable")?.unwrap_or(role.renewable);
        role.path_suffix = fields.string("path_suffix")?.unwrap_or(role.path_suffix);
        role.token_no_default_policy =
            fields.flag("token_no_default_policy")?.unwrap_or(role.token_no_default_policy);
        role.token_num_uses = fields.integer("token_num_uses")?.unwrap_or(role.token_num_uses);
        let mut warnings = Vec::new();
        let mut duration = |new: &str, old: &str, now: (u64, u64)| -> Result<(u64, u64), Refusal> {
            match (fields.seconds(new)?, fields.seconds(old)?) {
                (None, None) => Ok(now),
                (None, Some(value)) => Ok((value, value)),
                (Some(value), ignored) => {
                    if ignored.is_some() {
                        warnings.push(format!(
                            "Both '{new}' and deprecated '{old}' value supplied, ignoring the deprecated value"
                        ));
                    }
                    Ok((value, 0))
                }
            }
        };
        (role.token_period, role.period) =
            duration("token_period", "period", (role.token_period, role.period))?;
        (role.token_explicit_max_ttl, role.explicit_max_ttl) = duration(
            "token_explicit_max_ttl",
            "explicit_max_ttl",
            (role.token_explicit_max_ttl, role.explicit_max_ttl),
        )?;
        self.roles.insert(name.to_owned(), role);
        Ok(Answer::nothing().with_warnings(warnings))
    }
}

/// Marks the token whose last use is under way.
const SPENT: i64 = -1;

impl Token {
    pub(crate) fn is_root(&self) -> bool {
        self.policies.contains("root")
    }

    fn auth(&self, id: &str, ttl: u64) -> Value {
        json!({
            "client_token": id,
            "accessor": self.accessor,
            "policies": self.policies,
            "token_policies": self.policies,
            "metadata": self.meta,
            "lease_duration": ttl,
            "renewable": self.is_renewable,
            "entity_id": "",
            "token_type": "service",
            "orphan": self.parent.is_none(),
            "mfa_requirement": null,
            "num_uses": self.num_uses.max(0),
        })
    }

    fn show(&self, id: &str, now: u64) -> Value {
        let mut shown = json!({
            "id": id,
            "accessor": self.accessor,
            "policies": self.policies,
            "path": self.path,
            "meta": self.meta,
            "display_name": self.display_name,
            "num_uses": self.num_uses,
            "orphan": self.parent.is_none(),
            "creation_time": self.created,
            "creation_ttl": self.creation_ttl,
            "expire_time": null,
            "ttl": 0,
            "explicit_max_ttl": self.shown_max_ttl,
            "entity_id": "",
            "type": "service",
        });
        if let Some(role) = &self.role {
            shown["role"] = json!(role);
        }
        if self.shown_period > 0 {
            shown["period"] = json!(self.shown_period);
        }
        if let Some(expires) = self.expires {
            shown["expire_time"] = json!(clock::rfc3339(expires));
            shown["ttl"] = json!(expires.saturating_sub(now));
            shown["issue_time"] = json!(clock::rfc3339(self.created));
            shown["renewable"] = json!(self.is_renewable);
        }
        if let Some(renewed) = self.renewed {
            shown["last_renewal"] = json!(clock::rfc3339(renewed));
            shown["last_renewal_time"] = json!(renewed);
        }
        shown
    }
}

impl Life {
    /// The seconds that a token gets now, when it is made or renewed, with a warning if that is less than was
    /// asked for. `issued` is when it was made.
    fn grant(&self, increment: u64, issued: u64, now: u64) -> Result<(u64, Vec<String>), Refusal> {
        let set = |seconds: u64| (seconds > 0).then_some(seconds);
        let max_ttl = [set(self.max_ttl), set(self.explicit_max_ttl)].into_iter().flatten();
        let max_ttl = max_ttl.fold(SYSTEM_TTL, u64::min);
        let mut warnings = Vec::new();
        let (wanted, end) = if self.period > 0 {
            if self.period > max_ttl {
                warnings.push(format!(
                    "period of \"{}s\" exceeded the effective max_ttl of \"{max_ttl}s\"; period value is capped accordingly",
                    self.period
                ));
            }
            (
                self.period.min(max_ttl),
                set(self.explicit_max_ttl).map(|max| issued.saturating_add(max)),
            )
        } else {
            let wanted = set(increment).or(set(self.ttl)).unwrap_or(SYSTEM_TTL);
            (wanted, Some(issued.saturating_add(max_ttl)))
        };
        let Some(end) = end else { return Ok((wanted, warnings)) };
        let left = end.saturating_sub(now);
        if left == 0 {
            return Err(Refusal::internal("past the max TTL, cannot renew"));
        }
        if wanted > left {
            warnings.push(format!(
                "TTL of \"{wanted}s\" exceeded the effective max_ttl of \"{left}s\"; TTL value is capped accordingly"
            ));
        }
        Ok((wanted.min(left), warnings))
    }
}

impl Role {
    fn show(&self, name: &str) -> Value {
        json!({
            "name": name,
            "allowed_policies": self.allowed_policies,
            "disallowed_policies": self.disallowed_policies,
            "allowed_policies_glob": [],
            "disallowed_policies_glob": [],
            "allowed_entity_aliases": null,
            "orphan": self.orphan,
            "renewable": self.renewable,
            "path_suffix": self.path_suffix,
            "period": self.period,
            "token_period": self.token_period,
            "explicit_max_ttl": self.explicit_max_ttl,
            "token_explicit_max_ttl": self.token_explicit_max_ttl,
            "token_no_default_policy": self.token_no_default_policy,
            "token_num_uses": self.token_num_uses,
            "token_type": "default-service",
        })
    }
}

/// Which policies a new token gets: those asked for, as far as role or parent allow them.
fn choose_policies(
    caller: &Caller<'_>,
    parent: &Token,
    role: Option<&Role>,
    fields: &Fields,
) -> Result<BTreeSet<String>, Refusal> {
    let asked = sanitize(fields.list("policies")?.unwrap_or_default());
    let no_default = fields.flag("no_default_policy")?.unwrap_or(false);
    let restricting = role
        .filter(|role| !role.allowed_policies.is_empty() || !role.disallowed_policies.is_empty());

    let mut policies;
    let add_default;
    if let Some(role) = restricting {
        add_default = !no_default
            && !role.token_no_default_policy
            && !role.disallowed_policies.contains("default");
        policies = match (asked.is_empty(), role.allowed_policies.is_empty()) {
            (false, _) => asked,
            (true, false) => role.allowed_policies.clone(),
            (true, true) => parent.policies.clone(),
        };
        if let Some(name) = policies.iter().find(|name| role.disallowed_policies.contains(*name)) {
            return Err(Refusal::invalid(format!(
                "token policy {name:?} is disallowed by this role"
            )));
        }
        let is_allowed = |name: &String| {
            role.allowed_policies.is_empty()
                || role.allowed_policies.contains(name)
                || (add_default && name == "default")
        };
        if !policies.iter().all(is_allowed) {
            return Err(Refusal::invalid(format!(
                "token policies ({policies:?}) must be subset of the role's allowed policies ({:?}) or glob policies ([])",
                role.allowed_policies
            )));
        }
    } else if asked.is_empty() {
        policies = parent.policies.clone();
        add_default = false;
    } else if caller.is_sudo {
        policies = asked;
        add_default = !no_default;
    } else {
        if !asked.is_subset(&parent.policies) {
            return Err(Refusal::invalid("child policies must be subset of parent"));
        }
        policies = asked;
        add_default = !no_default && parent.policies.contains("default");
    }
    if policies.contains("root") {
        return Ok(BTreeSet::from(["root".to_owned()]));
    }
    if add_default {
        policies.insert("default".to_owned());
    }
    if no_default {
        policies.remove("default");
    }
    Ok(policies)
}

/// Policy names have no upper case; `root` stands alone.
pub(crate) fn sanitize(names: Vec<String>) -> BTreeSet<String> {
    let names: BTreeSet<_> = names
        .into_iter()
        .map(|name| name.trim().to_lowercase())
        .filter(|name| !name.is_empty())
        .collect();
    if names.contains("root") { BTreeSet::from(["root".to_owned()]) } else { names }
}

/// As long as a real service token of Vault 1.10 and later, with its prefix.
pub(crate) fn new_id() -> Result<String, Refusal> {
    Ok(format!("hvs.{}", random::alphanumeric(91)?))
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

/// The lesser of two limits, where zero is no limit.
fn lesser(a: u64, b: u64) -> u64 {
    match (a, b) {
        (0, limit) | (limit, 0) => limit,
        (a, b) => a.min(b),
    }
}
