//! `coffer fs kms policy`

use std::collections::BTreeMap;

use admin_api::{Exit, Problem};
use cli::{Console, Output};
use kms_core::{KmsConfig, KmsConfigId};
use serde::Serialize;
use vault_transit::VaultConfig;

#[derive(Serialize)]
struct Policy {
    /// In Vault's policy language.
    policy: String,
    /// What applies it and makes a token under it.
    commands: Vec<String>,
}

/// Prints the policy with the commands as comments, so that it can be piped to `vault policy write`.
pub(crate) fn run(
    arguments: &cli::Policy,
    console: &mut Console<'_>,
    output: Output,
) -> Result<Exit, Problem> {
    let mut policy = String::new();
    for master_key in &arguments.master_key_name {
        // What a token needs for itself it needs once.
        for line in config(arguments, master_key)?.policy().lines() {
            if !policy.lines().any(|known| known == line) {
                policy.push_str(line);
                policy.push('\n');
            }
        }
    }
    let mounted = match &arguments.transit_path {
        Some(path) => format!(" --transit-path {path}"),
        None => String::new(),
    };
    let keys = arguments.master_key_name.join(" ");
    let commands = [
        format!("coffer fs kms policy {keys}{mounted} | vault policy write coffer -"),
        "vault write auth/token/roles/coffer allowed_policies=coffer period=768h orphan=true"
            .into(),
        "vault token create -role=coffer -field=token > token".into(),
    ];
    let policy = Policy { policy, commands: commands.to_vec() };
    console.answer(&policy, output, |policy| {
        let comments: String = policy.commands.iter().map(|c| format!("#   {c}\n")).collect();
        format!(
            "{}# To apply it, and to make a token under it. It takes the place of the policy that is there: name every\n\
             # master key that the token is for.\n{comments}",
            policy.policy
        )
    });
    Ok(Exit::Done)
}

fn config(arguments: &cli::Policy, master_key: &str) -> Result<VaultConfig, Problem> {
    let transit =
        arguments.transit_path.iter().map(|path| ("transit_path".to_owned(), path.clone()));
    let config = KmsConfig {
        id: KmsConfigId::random(),
        kind: vault_transit::KIND.to_owned(),
        // A policy holds at any address; it is never asked.
        address: "https://localhost".to_owned(),
        master_key: master_key.to_owned(),
        settings: transit.collect::<BTreeMap<_, _>>(),
    };
    VaultConfig::parse(&config).map_err(|e| {
        let problem = Problem::new(Exit::Usage, "invalid", "no policy can be made", e.chain());
        match e.how_to_mend() {
            Some(cure) => problem.cure(cure),
            None => problem,
        }
    })
}
