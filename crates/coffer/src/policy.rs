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
    let transit =
        arguments.transit_path.iter().map(|path| ("transit_path".to_owned(), path.clone()));
    let config = KmsConfig {
        id: KmsConfigId::random(),
        kind: vault_transit::KIND.to_owned(),
        // A policy holds at any address; it is never asked.
        address: "https://localhost".to_owned(),
        master_key: arguments.master_key_name.clone(),
        settings: transit.collect::<BTreeMap<_, _>>(),
    };
    let config = VaultConfig::parse(&config).map_err(|e| {
        let problem = Problem::new(Exit::Usage, "invalid", "no policy can be made", e.chain());
        match e.how_to_mend() {
            Some(cure) => problem.cure(cure),
            None => problem,
        }
    })?;
    let mounted = match &arguments.transit_path {
        Some(path) => format!(" --transit-path {path}"),
        None => String::new(),
    };
    let key = config.master_key();
    let commands = [
        format!("coffer fs kms policy {key}{mounted} | vault policy write coffer -"),
        "vault write auth/token/roles/coffer allowed_policies=coffer period=768h orphan=true"
            .into(),
        "vault token create -role=coffer -field=token > token".into(),
    ];
    let policy = Policy { policy: config.policy(), commands: commands.to_vec() };
    console.answer(&policy, output, |policy| {
        let comments: String = policy.commands.iter().map(|c| format!("#   {c}\n")).collect();
        format!("{}# To apply it, and to make a token under it:\n{comments}", policy.policy)
    });
    Ok(Exit::Done)
}
