//! Token roles: what an administrator lays down for tokens made under a name.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{answer::Refusal, request::Fields, transit::is_name};

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Role {
    allowed_policies: BTreeSet<String>,
    disallowed_policies: BTreeSet<String>,
    pub(crate) orphan: bool,
    pub(crate) renewable: bool,
    pub(crate) path_suffix: String,
    token_no_default_policy: bool,
    /// Zero for no limit.
    pub(crate) token_num_uses: i64,
    pub(crate) token_period: u64,
    pub(crate) token_explicit_max_ttl: u64,
    /// The two above under their old names, shown as they were set.
    period: u64,
    explicit_max_ttl: u64,
}

impl Default for Role {
    fn default() -> Self {
        Self {
            allowed_policies: BTreeSet::new(),
            disallowed_policies: BTreeSet::new(),
            orphan: false,
            renewable: true,
            path_suffix: String::new(),
            token_no_default_policy: false,
            token_num_uses: 0,
            token_period: 0,
            token_explicit_max_ttl: 0,
            period: 0,
            explicit_max_ttl: 0,
        }
    }
}

impl Role {
    /// Changes what the fields name, and gives what the administrator should be told.
    pub(crate) fn configure(&mut self, fields: &Fields) -> Result<Vec<String>, Refusal> {
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
        if let Some(suffix) = fields.string("path_suffix")? {
            if !suffix.is_empty() && (suffix.len() < 3 || !is_name(&suffix)) {
                return Err(Refusal::invalid(
                    "given role path suffix contains invalid characters; must match \\w[\\w-.]+\\w",
                ));
            }
            self.path_suffix = suffix;
        }
        if let Some(allowed) = fields.list("allowed_policies")? {
            self.allowed_policies = sanitize(allowed);
        }
        if let Some(disallowed) = fields.list("disallowed_policies")? {
            self.disallowed_policies = sanitize(disallowed);
        }
        self.orphan = fields.flag("orphan")?.unwrap_or(self.orphan);
        self.renewable = fields.flag("renewable")?.unwrap_or(self.renewable);
        self.token_no_default_policy =
            fields.flag("token_no_default_policy")?.unwrap_or(self.token_no_default_policy);
        self.token_num_uses =
            fields.integer("token_num_uses")?.unwrap_or(self.token_num_uses).max(0);

        let mut warnings = Vec::new();
        let mut duration = |new: &str, old: &str, now: (u64, u64)| {
            Ok(match (fields.seconds(new)?, fields.seconds(old)?) {
                (None, None) => now,
                (None, Some(value)) => (value, value),
                (Some(value), None) => (value, 0),
                (Some(value), Some(_)) => {
                    warnings.push(format!(
                        "Both '{new}' and deprecated '{old}' value supplied, ignoring the deprecated value"
                    ));
                    (value, 0)
                }
            })
        };
        (self.token_period, self.period) =
            duration("token_period", "period", (self.token_period, self.period))?;
        (self.token_explicit_max_ttl, self.explicit_max_ttl) = duration(
            "token_explicit_max_ttl",
            "explicit_max_ttl",
            (self.token_explicit_max_ttl, self.explicit_max_ttl),
        )?;
        Ok(warnings)
    }

    pub(crate) fn show(&self, name: &str) -> Value {
        let mut shown = json!({
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
            "token_type": "default-service",
        });
        if self.token_num_uses > 0 {
            shown["token_num_uses"] = json!(self.token_num_uses);
        }
        shown
    }
}

/// Which policies a new token gets: those asked for, as far as role or parent allow them.
pub(crate) fn choose_policies(
    parent: &BTreeSet<String>,
    parent_is_sudo: bool,
    role: Option<&Role>,
    fields: &Fields,
) -> Result<BTreeSet<String>, Refusal> {
    let mut policies = sanitize(fields.strings("policies")?.unwrap_or_default());
    let no_default = fields.flag("no_default_policy")?.unwrap_or(false);
    let restricting = role
        .filter(|role| !role.allowed_policies.is_empty() || !role.disallowed_policies.is_empty());

    let add_default = match restricting {
        Some(role) => {
            !no_default
                && !role.token_no_default_policy
                && !role.disallowed_policies.contains("default")
        }
        None if policies.is_empty() => false,
        None => !no_default && (parent_is_sudo || parent.contains("default")),
    };
    if let Some(role) = restricting {
        let with_default = |mut names: BTreeSet<String>| {
            if add_default && !names.contains("root") {
                names.insert("default".to_owned());
            }
            names
        };
        let allowed = with_default(role.allowed_policies.clone());
        policies = match (policies.is_empty(), role.allowed_policies.is_empty()) {
            (false, _) => with_default(policies),
            (true, false) => allowed.clone(),
            (true, true) => with_default(parent.clone()),
        };
        if !role.allowed_policies.is_empty() && !policies.is_subset(&allowed) {
            return Err(Refusal::invalid(format!(
                "token policies ({}) must be subset of the role's allowed policies ({}) or glob policies ([])",
                quoted(&policies),
                quoted(&allowed)
            )));
        }
        if let Some(name) = policies.intersection(&role.disallowed_policies).next() {
            return Err(Refusal::invalid(format!(
                "token policy {name:?} is disallowed by this role"
            )));
        }
    } else if policies.is_empty() {
        policies.clone_from(parent);
    } else if !parent_is_sudo && !policies.is_subset(parent) {
        return Err(Refusal::invalid("child policies must be subset of parent"));
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

/// A list as Go prints it.
fn quoted(names: &BTreeSet<String>) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
    format!("[{}]", names.join(" "))
}
